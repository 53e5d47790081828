"""A fuzzer: texts, captures and model folders that nobody would write, given to attnviz.

    python -m tests.fuzz --seconds 120 --seed 7

It makes cases from a seed, runs them, and prints what they did. Nothing of the following may be
among that: a traceback, an exit code that is none of ours, control characters, rows that are not
equally wide, more than ten seconds, more than a gigabyte.
"""
