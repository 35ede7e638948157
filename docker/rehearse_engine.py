"""A Docker engine of its own for the rehearsal, images in place of the published ones, and compose.yaml in a form that Compose can read.

The base image is a fresh Debian, and Label Studio is installed in it by pip. Both images have the published names, so that the Dockerfile
and compose.yaml are used as they are. Compose 2.24 and later reads compose.yaml itself; for 1.29, which Debian 12 has, an equivalent file
is derived. Nothing but packages is downloaded. What is done with the stack is in docker/rehearse_story.py. An engine that already runs is
not used, because its images and volumes belong to somebody.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rehearse_base import ROOT, base, timed, tracked

PROGRAMS = {"dockerd": "docker.io", "docker": "docker.io", "containerd": "containerd", "iptables": "iptables", "ip": "iproute2"}
UP_SECONDS, DOWN_SECONDS = 30, 150
DISK = {"overlay2": 30e9, "vfs": 120e9}
"""Bytes of free disk needed with each storage driver. vfs needs more, because it copies the whole system for each layer."""
TABLES = {"filter": ("INPUT", "FORWARD", "OUTPUT"), "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")}
"""The firewall's tables that an engine changes, with the chains that each always has."""
LABEL_STUDIO = """
FROM {base}
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir label-studio=={version}
RUN useradd --uid 1001 --gid 0 --create-home studio && install --directory --owner=1001 --group=0 /label-studio/data
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin LABEL_STUDIO_BASE_DATA_DIR=/label-studio/data
# it calls nobody but the backend: what it asks of the internet goes to a proxy that is not there
ENV SENTRY_DSN= FRONTEND_SENTRY_DSN= COLLECT_ANALYTICS=false LATEST_VERSION_CHECK=false \\
    HTTP_PROXY=http://127.0.0.1:9 HTTPS_PROXY=http://127.0.0.1:9 NO_PROXY=127.0.0.1,localhost,sam4mllm.internal
WORKDIR /label-studio
USER 1001
CMD ["label-studio", "start", "--no-browser", "--internal-host", "0.0.0.0", "--port", "8080"]
"""


class NoEngine(Exception):
    """No engine can be started here, or its stack cannot be run; the message says why."""


@dataclass
class Stack:
    """The copy of the checkout whose services are started, how Compose is called on it, and where its services answer.

    ``waits``: whether Compose reads compose.yaml itself and knows ``up --wait``; ``studio`` and ``backend``: the services' URLs; ``token``:
    Label Studio's API key.
    """

    folder: Path
    compose_command: list[str]
    waits: bool
    environment: dict[str, str]
    studio: str = ""
    backend: str = ""
    token: str = ""

    def run(self, *command: str, given: bytes | None = None) -> bytes:
        """Run a command, with ``given`` as its input, and return what it prints. Exits with its last line if it fails."""
        done = subprocess.run(command, cwd=self.folder / "docker", env=self.environment, input=given, capture_output=True, check=False)
        if done.returncode:
            said = [line for line in (done.stdout + b"\n" + done.stderr).decode(errors="replace").splitlines() if line.strip()]
            sys.exit(f"error: `{' '.join(command)[:150]}` ended with {done.returncode}: {said[-1] if said else 'it said nothing'}")
        return done.stdout

    def docker(self, *arguments: str) -> str:
        return self.run("docker", *arguments).decode().strip()

    def compose(self, *arguments: str) -> str:
        return self.run(*self.compose_command, *arguments).decode().strip()

    def container(self, service: str) -> str:
        """Return the id of a service's container, also if it is stopped."""
        return self.docker(
            "ps",
            "--all",
            "--quiet",
            "--filter",
            f"label=com.docker.compose.service={service}",
            "--filter",
            "label=com.docker.compose.oneoff=False",
        )

    def inspect(self, service: str, field: str) -> str:
        return self.docker("inspect", "--format", f"{{{{{field}}}}}", self.container(service))

    def last_words(self, service: str) -> str:
        """Return the last error among the last 30 lines that a service's container printed, or the last line if none is an error."""
        done = subprocess.run(
            ["docker", "logs", "--tail", "30", self.container(service)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        told = [line.strip() for line in done.stdout.decode(errors="replace").splitlines()]
        faults = [line for line in told if re.match(r"(\| )?\w*(Error|Exception)\b", line)]
        return next(reversed(faults or told), "it printed nothing")


def find_compose() -> tuple[list[str], bool]:
    """Return how Compose is called, and whether it reads compose.yaml itself. Raises NoEngine if there is no Compose that can be used."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) is None:
            continue
        said = subprocess.run([*command, "version", "--short"], capture_output=True, text=True, check=False).stdout
        if found := re.match(r"v?(\d+)\.(\d+)", said):
            version = int(found[1]), int(found[2])
            if version >= (2, 24):
                return command, True
            if (1, 27) <= version < (2, 0):
                return [*command, "--project-name", "sam4mllm"], False
    raise NoEngine("there is no Compose that it knows: apt-get install docker-compose")


def for_old_compose(text: str) -> str:
    """Return the text of compose.yaml in a form that Compose 1.29 reads: without the project's name, and with no file of settings optional.

    The caller must create missing files of settings as empty ones.
    """
    text = re.sub(r"^name: .*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^( +)- path: (\S+)\n +required: false\n", r"\1- \2\n", text, flags=re.MULTILINE)


def prepare(folder: Path, command: list[str], waits: bool, host: str) -> Stack:
    """Copy the files that git tracks to a folder, write docker/.env as its example says, and return the stack.

    ``host`` is the engine's address; ``waits`` is whether Compose reads compose.yaml itself.
    """
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_CONFIG") if name in os.environ}
    # the classic builder is used, because BuildKit is a plugin that may be missing, and asks a registry even about local images
    stack = Stack(folder, command, waits, kept | {"DOCKER_HOST": host, "DOCKER_BUILDKIT": "0", "COMPOSE_DOCKER_CLI_BUILD": "0"})
    stack.token = secrets.token_hex(20)
    known = {"LABEL_STUDIO_USERNAME": "rehearsal@example.com", "LABEL_STUDIO_API_KEY": stack.token}
    example = (folder / "docker/.env.example").read_text(encoding="utf-8")
    filled = re.sub(r"^(\w+)=$", lambda match: f"{match[1]}={known.get(match[1]) or secrets.token_hex(20)}", example, flags=re.MULTILINE)
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    stack.studio, stack.backend = (f"http://{address}" for address in addresses)
    own = f"LABEL_STUDIO_ADDRESS={addresses[0]}\nSAM4MLLM_ADDRESS={addresses[1]}\n"
    place = folder / "docker/.env"
    place.touch(0o600)
    place.write_text(f"{filled}\n{own}", encoding="utf-8")
    if not waits:
        (folder / "docker/backend.env").touch()
        compose = folder / "docker/compose.yaml"
        compose.write_text(for_old_compose(compose.read_text(encoding="utf-8")), encoding="utf-8")
    return stack


def free_port() -> int:
    """Return a TCP port that nobody uses at this moment."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def import_base(stack: Stack, image: str, folder: Path) -> None:
    """Import a fresh Debian as the base image, unless the engine has the image already.

    It has this machine's settings for pip and the network, so that it can download packages.
    """
    if stack.docker("images", "--quiet", image):
        return  # kept from an earlier run
    base(image, folder)
    changes = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"} | {k: v for k, v in os.environ.items() if k.startswith("PIP_")}
    options = [word for key, value in changes.items() for word in ("--change", f"ENV {key}={json.dumps(value)}")]
    with subprocess.Popen(["tar", "--directory", str(folder), "--create", "."], stdout=subprocess.PIPE) as packed:
        subprocess.run(
            ["docker", "import", *options, "-", image], stdin=packed.stdout, stdout=subprocess.DEVNULL, env=stack.environment, check=True
        )
    shutil.rmtree(folder)


def build(stack: Stack, scratch: Path) -> None:
    """Build all images, and print the time and the size of each."""
    service = (stack.folder / "docker/compose.yaml").read_text(encoding="utf-8")
    studio = re.search(r"image: (heartexlabs/label-studio:(\S+))", service)
    origin = re.search(r"^FROM (\S+)", (stack.folder / "docker/Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    if studio is None or origin is None:
        sys.exit("error: compose.yaml names no Label Studio, or the Dockerfile no base; teach docker/rehearse_engine.py their new form")
    timed(import_base, stack, origin[1], scratch / "base", name=f"the base, a Debian as {origin[1]}")
    recipe = LABEL_STUDIO.format(base=origin[1], version=studio[2]).encode()
    timed(lambda: stack.run("docker", "build", "--tag", studio[1], "-", given=recipe), name=f"{studio[1]}, installed by pip")
    timed(lambda: stack.compose("build", "backend"), name="sam4mllm, built as compose.yaml says")
    for image in (origin[1], studio[1], "sam4mllm"):
        print(f"{int(stack.docker('image', 'inspect', '--format', '{{.Size}}', image)) / 1e6:6.0f} MB  image {image}", flush=True)


@contextmanager
def engine(data: Path, own: Path) -> Iterator[str]:
    """Start a new engine that keeps its images in ``data`` and its other files in ``own``; the block gets its address.

    At the end of the block it is stopped, and the machine's network is restored. Raises NoEngine if none can be started.
    """
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            raise NoEngine(f"{program} is not installed: apt-get install {package}")
    if Path("/run/docker.sock").exists() or Path("/sys/class/net/docker0").exists():
        raise NoEngine("another one runs here, and both would change the same networks")
    rules, forwarding = firewall(), Path("/proc/sys/net/ipv4/ip_forward").read_text(encoding="ascii")
    host, log = f"unix://{own}/docker.sock", own / "dockerd.log"
    places = {"--data-root": data, "--exec-root": own / "exec", "--pidfile": own / "dockerd.pid"}
    command = ["dockerd", "--host", host, *(str(word) for place in places.items() for word in place)]
    with log.open("wb") as written:
        process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_until_up(process, host, log)
        yield host
    finally:
        process.terminate()  # dockerd stops its containers before it ends
        try:
            process.wait(DOWN_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        tidy(own, data, rules, forwarding)


def wait_until_up(process: subprocess.Popen[bytes], host: str, log: Path) -> None:
    """Wait until the engine answers. Raises NoEngine if it does not, or if there is too little free disk for its storage driver."""
    end = time.monotonic() + UP_SECONDS
    asking = ["docker", "--host", host, "info", "--format", "{{.Driver}} {{.DockerRootDir}}"]
    while (asked := subprocess.run(asking, capture_output=True, text=True, check=False)).returncode or not asked.stdout.strip():
        if process.poll() is not None or time.monotonic() > end:
            said = log.read_text(encoding="utf-8", errors="replace").splitlines()
            raise NoEngine(f"dockerd did not come up in {UP_SECONDS} s: {said[-1][-200:] if said else 'it said nothing'}")
        time.sleep(0.5)
    driver, place = asked.stdout.split()
    needed, free = DISK.get(driver, DISK["overlay2"]), shutil.disk_usage(place).free
    if free < needed:
        raise NoEngine(f"{driver} takes {needed / 1e9:.0f} GB of disk here, and {free / 1e9:.0f} are free")
    print(f"an engine is up, storing by {driver}", flush=True)


def firewall() -> str:
    """Return the firewall's present rules in the tables of TABLES, for :func:`tidy` to restore."""
    tables = []
    for table, chains in TABLES.items():
        said = subprocess.run(["iptables-save", "--table", table], capture_output=True, text=True, check=False).stdout
        empty = "\n".join([f"*{table}", *(f":{chain} ACCEPT [0:0]" for chain in chains), "COMMIT\n"])
        tables.append(said if f"*{table}" in said else empty)
    return "".join(tables)


def tidy(own: Path, data: Path, rules: str, forwarding: str) -> None:
    """Remove what an engine leaves behind: its bridge, and its mounts under ``own`` and ``data``.

    The firewall's ``rules`` and the kernel's setting for IP ``forwarding`` are restored.
    """
    subprocess.run(["ip", "link", "delete", "docker0"], capture_output=True, check=False)
    subprocess.run(["iptables-restore"], input=rules, capture_output=True, text=True, check=False)
    Path("/proc/sys/net/ipv4/ip_forward").write_text(forwarding, encoding="ascii")
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    for place in reversed(mounted):
        if Path(place).is_relative_to(own) or Path(place).is_relative_to(data):
            subprocess.run(["umount", "--lazy", place], capture_output=True, check=False)
