# Every target runs a step of .ci/run, which builds the environments it needs.
.PHONY: check test extended notebooks slow lint types docs smoke newest oracle package clean

check:
	bash .ci/run

test extended notebooks slow lint types docs smoke newest oracle package:
	bash .ci/run $@

clean:
	rm -rf .venv .venv-docs .venv-newest .venv-oracle build dist site .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
