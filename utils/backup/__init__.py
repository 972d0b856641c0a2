"""What the services of a machine keep, in one folder: made while they run, put back while they rest.

A backup is a folder with `manifest.json` and what that lists, each file with its size and SHA-256:

    data/       the databases of jobs and keys, and `inputs/`, the pictures that jobs begin with
    loras/      the library
    pins/       LoRAs that open jobs keep, by service
    settings/   .env and the services' TOML files
    images/     the pictures of the jobs, where they were asked for

`making` writes one, `reading` checks one, `restoring` puts one back, all of it or nothing.
"""
