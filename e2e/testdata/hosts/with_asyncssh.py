"""Commands and files with asyncssh: with_asyncssh.py DIR, settings in the environment."""
import asyncio
import os
import sys

import asyncssh

folder = sys.argv[1]


async def main():
    keys = [os.environ["KEY"]]
    if "CERTIFICATE" in os.environ:
        keys = [(os.environ["KEY"], os.environ["CERTIFICATE"])]
    async with asyncssh.connect(os.environ["HOST"], port=int(os.environ["PORT"]), username=os.environ["LOGIN"], client_keys=keys,
                                known_hosts=os.environ["KNOWN_HOSTS"], config=None, agent_path=None) as conn:
        done = await conn.run(f"cat - {folder}/none", input="given\n")
        print(repr(done.stdout), repr(done.stderr), done.exit_status)
        async with conn.start_sftp_client() as files:
            await files.put("up", f"{folder}/by-asyncssh")
            await files.get(f"{folder}/by-asyncssh", "by-asyncssh")
        await asyncssh.scp((conn, f"{folder}/by-asyncssh"), "by-asyncssh-2")
        print(*(open(name, "rb").read() == open("up", "rb").read() for name in ("by-asyncssh", "by-asyncssh-2")))


asyncio.run(main())
