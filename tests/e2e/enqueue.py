"""Enqueues the jobs on stdin with the client of the rrq that it runs in.

Usage: enqueue.py CONFIG < {id: [function name, options], ...}
"""

import asyncio
import json
import sys

from rrq.client import RRQClient


async def main(config_path):
    client = RRQClient(config_path=config_path)
    for job_id, (function_name, options) in json.load(sys.stdin).items():
        await client.enqueue(function_name, {"job_id": job_id, **options})
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
