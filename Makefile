# Every target runs a step of .ci/run, which builds the environments it needs.
.PHONY: check test notebooks slow lint types smoke newest oracle clean

check:
	bash .ci/run

test notebooks slow lint types smoke newest oracle:
	bash .ci/run $@

clean:
	rm -rf .venv .venv-newest .venv-oracle build dist site .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
