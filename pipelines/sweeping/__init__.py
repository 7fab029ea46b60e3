"""What `pipelines/tune.py` is made of.

space       what may be tried
plan        what was asked for: kept, so that a sweep can go on by its name alone
record      what was tried and came of it, in a journal: the one thing that a sweep resumes from
search      proposes settings; keeps as many trials going as there is room for
schedulers  stop trials that fall behind, or let them take over the weights of better ones
budget      ends a sweep when its time, samples or GPU hours are spent
trial       trains one variant, in a process of its own
sweep       puts these together
table       shows a sweep while it runs
charts      draws what came of it
page        puts that on one page
winner      trains the best on, tests it, offers it to the registry
"""
