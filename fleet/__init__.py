"""Many cards behind one address: which replica draws which job, thought out without any network.

`wanted.py` what a job needs · `replica.py` what a replica says of itself · `routing.py` who gets what ·
`waiting.py` the line, in which a job may be passed a bounded number of times · `scaling.py` how many
replicas there should be. Nothing here waits, sends or reads a clock; `simulator.py` runs the same code
through days of traffic in seconds.
"""
