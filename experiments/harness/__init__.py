"""What every experiment is run by: its configuration, its run folder, its facts and its figures.

config, bounds, fields    a configuration: presets and overrides, limits of the fields, their meanings
running                   what an experiment is: measured, stored, summarized, shown and drawn
store                     the run folder, written atomically, resumed after a kill
progress                  bars, and independent cells spread over devices
facts                     what theory predicts beside what was measured
panels                    log-log panels with fitted power laws
compare, grid             several runs beside each other, and grids of them
results                   the numbers of runs as one tidy table
docs_data                 runs as the documentation keeps them
catalog                   which experiments there are
streams, errors           output that outlives its reader, and failures that are no mistake of the command
"""
