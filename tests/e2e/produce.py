"""Enqueues jobs until it is killed, and writes the id of each acknowledged job to a file.

Usage: produce.py CONFIG FILE PREFIX-OF-IDS
"""

import asyncio
import random
import sys
from itertools import count

from rrq.client import RRQClient


async def main(config_path, acknowledged_path, prefix):
    client = RRQClient(config_path=config_path)
    with open(acknowledged_path, "w", buffering=1) as acknowledged:
        for number in count():
            params = {"seconds": random.choice([0, 0.01, 0.1])}
            options = {"job_id": f"{prefix} {number}", "max_retries": 1000, "params": params}
            await enqueue(client, options)
            print(options["job_id"], file=acknowledged)
            await asyncio.sleep(0.01)


async def enqueue(client, options):
    """Enqueues a job. Tries again while Redis is down."""
    while True:
        try:
            await client.enqueue("record", dict(options))
        except ValueError as error:
            if str(error) != "job_id already exists":
                await asyncio.sleep(0.05)
                continue
        return


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
