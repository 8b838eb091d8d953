"""Enqueues the jobs on stdin with the client of the installed rrq.

Usage: enqueue.py CONFIG [SECONDS-BETWEEN] < {id: [function name, options], ...}
"""

import asyncio
import json
import sys

from rrq.client import RRQClient


async def main(config_path, between=None):
    client = RRQClient(config_path=config_path)
    for job_id, (function_name, options) in json.load(sys.stdin).items():
        await enqueue(client, function_name, {"job_id": job_id, **options})
        if between is not None:
            await asyncio.sleep(float(between))
    await client.close()


async def enqueue(client, function_name, options):
    """Enqueues a job. Tries again if Redis needs more than half a second, as it may for 10 MB."""
    while True:
        try:
            await client.enqueue(function_name, options)
        except ValueError as error:
            if str(error) == "timed out":
                continue
            if str(error) != "job_id already exists":  # the try that timed out has succeeded
                raise
        return


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
