"""The embedded model behind the servers that others would take, each as its own documentation has it.

Every module is one server, run by `scripts/bench/servers.py` as `python -m scripts.bench.rival_servers.<name> PORT`. They
draw with `FluxPipeline` as diffusers' documentation has it (`drawing.py`) and answer a PNG by Pillow.
"""
