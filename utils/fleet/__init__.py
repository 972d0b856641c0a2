"""Replicas of workers on the machines of a Ray cluster, and the front door's side of them.

`messages.py` what the two say to each other · `ray_processes.py`, `ray_command.py`, `cluster.py` Ray: its processes, its
command, its applications · `machine.py` a machine of the fleet · `replica.py` a worker on it, as a Ray Serve replica ·
`request_router.py` how Ray finds one · `board.py` what this process knows of them · `crew.py` who comes and goes ·
`worker.py` a replica with a worker's face · `dispatcher.py`, `queue.py` the queue that feeds them · `door_files.py`,
`node_files.py` what jobs need there · `roster.py` what can be drawn · `scale.py` how many have a worker ·
`background.py` calls that block.
Of several front doors over one database (`utils/database/postgres.py`): `doors.py` one among others · `lease.py` which of them
routes · `word.py` what they tell each other · `shared_files.py`, `usage.py` what all of them have · `guest.py` Ray's part of
one beside the first.
What is decided and why is in the package `fleet`, which knows nothing of Ray.
"""
