"""The parts of the command `sweep`.

groups      trains the runs of a sweep, group by group, a program for each shape
halving     trains all configurations for a while, the better ones for longer
picture     draws the score against each varied field
population  trains members of which the worse go on from the better
progress    shows how far a sweep is
ranking     ranks configurations by their mean return, with its interval
searches    runs each kind of search, from its start to its report
space       values of the varied fields: choices, ranges, draws
study       trains the configurations that Optuna asks for
table       the CSV of a sweep: written whole, read back
"""
