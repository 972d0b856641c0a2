"""Many cards behind one address: which replica draws which job, thought out without any network.

`wanted.py` what a job needs · `replica.py` what a replica says of itself · `card.py` what is concluded from
that · `waiting.py` the line, in which a job may be passed a bounded number of times · `preference.py` which
card is best for a job, `idle.py` found without looking at all · `patience.py` when to wait for a busy one,
`regret.py` what that has cost · `demand.py` what is asked for lately · `routing.py` all of it together:
who begins what · `scaling.py` how many replicas there should be. Nothing here waits, sends or reads a clock;
`simulator.py` runs the same code through days of traffic in seconds.
"""
