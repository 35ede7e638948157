"""An engine of one's own, with images in place of the published ones, and compose.yaml in a form that the Compose at hand reads.

The base image is a fresh Debian, Label Studio is installed in it by pip, and both bear the published names, so that the Dockerfile and
compose.yaml are used as they are. Compose 2.24 and later reads compose.yaml itself; for 1.29, Debian 12's, an equivalent file is derived.
Nothing is fetched but packages. What is done with the stack is in docker/rehearse_story.py. An engine that runs already is not used: its
images and volumes are somebody's.
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
"""Bytes: vfs copies the whole system for each layer."""
TABLES = {"filter": ("INPUT", "FORWARD", "OUTPUT"), "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")}
"""Of the firewall, those that an engine changes, with the chains that are always there."""
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
    """Why none can be started here."""


@dataclass
class Stack:
    """The checkout's copy that is brought up, how Compose is called on it, and where its services then answer."""

    folder: Path
    compose_command: list[str]
    waits: bool
    environment: dict[str, str]
    studio: str = ""
    backend: str = ""
    token: str = ""

    def run(self, *command: str, given: bytes | None = None) -> bytes:
        """What a command prints. Exits with its last line if it fails."""
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
        """Its id, of a stopped one, too."""
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
        """The end of what its container printed, but for the lines of a traceback."""
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
    """How Compose is called, and whether it reads compose.yaml itself. Raises NoEngine if there is none."""
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
    """compose.yaml for 1.29: no name of the project in it, and files of settings that have to be there, empty ones for those missing."""
    text = re.sub(r"^name: .*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^( +)- path: (\S+)\n +required: false\n", r"\1- \2\n", text, flags=re.MULTILINE)


def prepare(folder: Path, command: list[str], waits: bool, host: str) -> Stack:
    """A copy of the files that git knows, with an .env as its example says."""
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_CONFIG") if name in os.environ}
    # the classic builder: the other is a plugin that may not be there, and asks a registry about images that are here
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
    """One that nobody has at this moment."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def import_base(stack: Stack, image: str, folder: Path) -> None:
    """A fresh Debian as the base image, which reaches packages as this machine does."""
    if stack.docker("images", "--quiet", image):
        return  # kept from a run before
    base(image, folder)
    changes = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"} | {k: v for k, v in os.environ.items() if k.startswith("PIP_")}
    options = [word for key, value in changes.items() for word in ("--change", f"ENV {key}={json.dumps(value)}")]
    with subprocess.Popen(["tar", "--directory", str(folder), "--create", "."], stdout=subprocess.PIPE) as packed:
        subprocess.run(
            ["docker", "import", *options, "-", image], stdin=packed.stdout, stdout=subprocess.DEVNULL, env=stack.environment, check=True
        )
    shutil.rmtree(folder)


def build(stack: Stack, scratch: Path) -> None:
    """All images, each printed with its time and size."""
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
    """The address of a new engine with its images in ``data``. It is ended afterwards, and the machine's network is as it was.

    Raises NoEngine if none can be started.
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
        process.terminate()  # it stops its containers first
        try:
            process.wait(DOWN_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        tidy(own, data, rules, forwarding)


def wait_until_up(process: subprocess.Popen[bytes], host: str, log: Path) -> None:
    """Until it answers, and has the disk that its way of storing takes. Raises NoEngine."""
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
    """The rules that are there, for :func:`tidy`."""
    tables = []
    for table, chains in TABLES.items():
        said = subprocess.run(["iptables-save", "--table", table], capture_output=True, text=True, check=False).stdout
        empty = "\n".join([f"*{table}", *(f":{chain} ACCEPT [0:0]" for chain in chains), "COMMIT\n"])
        tables.append(said if f"*{table}" in said else empty)
    return "".join(tables)


def tidy(own: Path, data: Path, rules: str, forwarding: str) -> None:
    """Take away what an engine leaves: its bridge, rules and mounts."""
    subprocess.run(["ip", "link", "delete", "docker0"], capture_output=True, check=False)
    subprocess.run(["iptables-restore"], input=rules, capture_output=True, text=True, check=False)
    Path("/proc/sys/net/ipv4/ip_forward").write_text(forwarding, encoding="ascii")
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    for place in reversed(mounted):
        if Path(place).is_relative_to(own) or Path(place).is_relative_to(data):
            subprocess.run(["umount", "--lazy", place], capture_output=True, check=False)
