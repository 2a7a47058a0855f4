"""Commands and files with paramiko: with_paramiko.py DIR, settings in the environment."""
import os
import sys

import paramiko

folder = sys.argv[1]
client = paramiko.SSHClient()
client.load_host_keys(os.environ["PLAIN_KNOWN_HOSTS"])
key = paramiko.Ed25519Key.from_private_key_file(os.environ["KEY"])
if "CERTIFICATE" in os.environ:
    key.load_certificate(os.environ["CERTIFICATE"])
client.connect(os.environ["HOST"], port=int(os.environ["PORT"]), username=os.environ["LOGIN"], pkey=key, allow_agent=False, look_for_keys=False)
stdin, stdout, stderr = client.exec_command(f"cat - {folder}/none")
stdin.write("given\n")
stdin.channel.shutdown_write()
print(stdout.read(), stderr.read(), stdout.channel.recv_exit_status())
files = client.open_sftp()
files.put("up", f"{folder}/by-paramiko")
files.rename(f"{folder}/by-paramiko", f"{folder}/by-paramiko-2")
files.get(f"{folder}/by-paramiko-2", "by-paramiko")
print(sorted(name for name in files.listdir(folder) if name.startswith("by-paramiko")), open("by-paramiko", "rb").read() == open("up", "rb").read())
client.close()
