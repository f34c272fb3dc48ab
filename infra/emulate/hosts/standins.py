# journalctl, docker and nvidia-smi of a test machine: one file, which goes by the name that it is called by.
# Standard library alone. What goes wrong is told by /etc/standin.json. Real ones are quick to start, and so is this one:
# what only some verbs want is imported by them, and paths are plain text (pathlib alone takes longer than most verbs).

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

IMAGES = "/var/lib/standin-docker/images"
CODE = "/var/lib/standin-docker/code"
RUNNING = "/run/standin-docker"
HELPERS_STORE = "/root/.password-store"
CHECKOUT = "/srv/checkout"
COMPILED = "/srv/compiled"
IMAGE_ENV = {
    "PATH": f"{CHECKOUT}/.venv/bin:/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "PYTHONUNBUFFERED": "1",
    "PYTHONPYCACHEPREFIX": COMPILED,
    "XDG_CACHE_HOME": "/cache",
    "HF_HOME": "/cache/huggingface",
    "LETTERPRESS_WORKER_CACHE_DIR": "/cache/letterpress",
}


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def standin() -> dict[str, Any]:
    import json

    found: dict[str, Any] = json.loads(read("/etc/standin.json"))
    return found


def journalctl(argv: list[str]) -> int:
    import json

    def after(option: str) -> str:
        return argv[argv.index(option) + 1] if option in argv else ""

    journal = f"/var/log/standin-journal/{after('-u')}"
    entries = [json.loads(line) for line in read(journal).splitlines()] if os.path.exists(journal) else []
    since = next((float(word[9:]) for word in argv if word.startswith("--since=@")), 0.0)
    entries = [entry for entry in entries if int(entry["__REALTIME_TIMESTAMP"]) / 1e6 >= since - 1e-6]
    if after("-n"):
        entries = entries[-int(after("-n")) :]
    for entry in entries:
        print(json.dumps(entry) if after("-o") == "json" else entry["MESSAGE"])
    return 0


def nvidia_smi(argv: list[str]) -> int:
    gpus = standin()["gpus"]
    if gpus is None:
        print("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.")
        return 9
    for name, memory in gpus:
        print(f"{name}, {memory}, 580.65.06")
    return 0


def refuse(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


def docker(argv: list[str]) -> int:
    for folder in (IMAGES, CODE, RUNNING):
        os.makedirs(folder, exist_ok=True)
    config = "/root/.docker"
    if argv[0] == "--config":
        config, argv = argv[1], argv[2:]
    match argv:
        case ["version", *_]:
            print("27.0.0")
        case ["info", *_]:
            print('{"nvidia":{},"runc":{}}')
        case ["ps", "-aq", "--filter", named]:
            prefix = named.removeprefix("name=^")
            print("\n".join(name for name in os.listdir(RUNNING) if name.startswith(prefix)))
        case ["image", "ls", "-q", _]:
            pass  # no image has an id of its own here
        case ["image", "rm", "-f", tag]:
            if os.path.exists(image(tag)):
                os.unlink(image(tag))
        case ["image", "inspect", tag]:
            return 0 if os.path.exists(image(tag)) else refuse(f"Error: No such image: {tag}")
        case ["login", *_]:
            return login(config)
        case ["pull", *_, reference]:
            told = standin()
            if told.get("registry") == "hangs":
                hang()
            wanted = told.get("registry_password")
            if told.get("registry") == "refuses" or (wanted and wanted not in logged_in(config)):
                return refuse(
                    f"Error response from daemon: pull access denied for {reference}, repository does not exist"
                )
            program = told.get("programs", {}).get(reference)
            write(image(reference), other(reference, program) if program else CHECKOUT)
        case ["build", *_]:
            return build(argv)
        case ["load"]:
            sys.stdin.buffer.read()
            write(image("saved:1"), CHECKOUT)
            print("Loaded image: saved:1")
        case ["tag", before, after]:
            write(image(after), read(image(before)))
        case ["run", *_]:
            return run(argv[1:])
        case ["stop", "-t", seconds, name]:
            return stop(name, float(seconds))
        case ["rm", "-f", name]:
            return stop(name, 0.0)
        case _:
            return refuse(f"the stand-in does not know: docker {' '.join(argv)}")
    return 0


def hang() -> None:
    import signal

    signal.pause()


def image(tag: str) -> str:
    """A file that holds the folder of the image's code."""
    return f"{IMAGES}/{tag.replace('/', '%')}"


def other(reference: str, program: str) -> str:
    """The folder of an image whose worker is another program, given as Python's text."""
    import hashlib

    folder = f"{CODE}/{hashlib.sha256(reference.encode()).hexdigest()[:16]}"
    os.makedirs(f"{folder}/worker", exist_ok=True)
    write(f"{folder}/worker/__init__.py", "")
    write(f"{folder}/worker/__main__.py", program)
    return folder


def login(config: str) -> int:
    """Kept as Docker keeps it where it has no helper for that."""
    import base64
    import json

    password = sys.stdin.read()
    if password != standin().get("registry_password"):
        return refuse("unauthorized")
    kept: dict[str, object] = {"auths": {"registry": {"auth": base64.b64encode(f"user:{password}".encode()).decode()}}}
    file = f"{config}/config.json"
    known = json.loads(read(file)).get("auths") if os.path.exists(file) else None
    if standin().get("credential_helper") and not known:  # Docker looks for one by itself where nobody is logged in
        write(HELPERS_STORE, json.dumps(kept))
        kept = {"credsStore": "pass"}
    os.makedirs(config, exist_ok=True)
    write(file, json.dumps(kept))
    return 0


def logged_in(config: str) -> str:
    """As whom; empty if nobody is."""
    import base64
    import json

    file = f"{config}/config.json"
    if not os.path.exists(file):
        return ""
    kept = json.loads(read(file))
    if kept.get("credsStore"):
        kept = json.loads(read(HELPERS_STORE))
    return base64.b64decode(kept["auths"]["registry"]["auth"]).decode()


def build(argv: list[str]) -> int:
    """The uploaded context is what is run."""
    import hashlib
    import io
    import tarfile

    tag = argv[argv.index("-t") + 1]
    content = sys.stdin.buffer.read()
    folder = f"{CODE}/{hashlib.sha256(content).hexdigest()[:16]}"
    with tarfile.open(fileobj=io.BytesIO(content)) as context:
        names = context.getnames()
        for wanted in ("worker/Dockerfile", "pyproject.toml", "constraints.txt", "worker/container/entrypoint.sh"):
            if wanted not in names:
                return refuse(f"failed to solve: {wanted}: not found")
        try:
            context.extractall(folder)  # its own; filters came with Python 3.11.4
        except OSError as error:
            return refuse(f"failed to copy files: {str(error.strerror).lower()}")
    print("#1 transferring context")
    if broken := standin().get("image"):
        write(f"{folder}/worker/__main__.py", f"import sys\nprint({broken!r}, flush=True)\nsys.exit(70)\n")
    write(image(tag), folder)
    print(f"#9 naming to {tag} done")
    return 0


def run(argv: list[str]) -> int:
    """The program of the image, with the mounts, the environment and the user that it would have there."""
    import signal
    import subprocess

    flags = {"--rm", "--init"}
    mounts, environment, name, device = [], dict(IMAGE_ENV), f"c{os.getpid()}", ""
    while argv[0].startswith("-"):
        flag = argv.pop(0)
        value = "" if flag in flags else argv.pop(0)
        match flag:
            case "-v":
                mounts.append(value.split(":"))
            case "-e":
                key, _, text = value.partition("=")
                environment[key] = text
            case "--env-file":
                pairs = (line.partition("=") for line in read(value).splitlines())
                environment |= {key: text for key, _, text in pairs}
            case "--name":
                name = value
            case "--gpus":
                device = value.removeprefix("device=")
    tag, command, *rest = argv
    if not os.path.exists(image(tag)):
        return refuse(f"Unable to find image '{tag}' locally")
    if device and int(device) >= len(standin()["gpus"] or ()):
        return refuse(f"nvidia-container-cli: device error: {device}: unknown device")
    environment["PYTHONPATH"] = read(image(tag))
    programs = {
        "server": ["python3", "-m", "worker"],
        "weights": [
            "python3",
            "-c",
            "import sys; from infra.cli import main; sys.argv[0] = 'letterpress'; main()",
            "weights",
            *rest,
        ],
    }
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        return refuse("unshare: not permitted")
    binds = "".join(
        f"mkdir -p {os.path.dirname(there) if os.path.isfile(here) else there}; "
        f"{f'touch {there}; ' if os.path.isfile(here) else ''}mount --bind {here} {there}; "
        for here, there, *_ in mounts
    )
    script = (
        "mount -t tmpfs -o mode=755 tmpfs /mnt; mkdir -p /mnt/cache; "
        + binds.replace(" /cache", " /mnt/cache")
        + 'exec setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs -- "$@"'
    )
    environment = {
        key: text.replace("/cache", "/mnt/cache") if text.startswith("/cache") else text
        for key, text in environment.items()
    }
    process = subprocess.Popen(
        ["unshare", "-m", "sh", "-ec", script, "sh", *programs[command]],
        env=environment,
        cwd="/",
        start_new_session=True,
    )
    write(f"{RUNNING}/{name}", str(process.pid))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: process.send_signal(signal.SIGTERM))
    status = process.wait()
    if os.path.exists(f"{RUNNING}/{name}"):
        os.unlink(f"{RUNNING}/{name}")
    return status if status >= 0 else 128 - status


def stop(name: str, seconds: float) -> int:
    import signal
    import time

    running = f"{RUNNING}/{name}"
    try:
        pid = int(read(running))
    except FileNotFoundError:
        return refuse(f"Error: No such container: {name}")
    end = time.monotonic() + seconds
    number = signal.SIGTERM if seconds else signal.SIGKILL
    try:
        os.kill(pid, number)
        while os.path.exists(running) and os.path.exists(f"/proc/{pid}"):
            if time.monotonic() > end and seconds:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
    except ProcessLookupError:
        pass
    return 0


PROGRAMS = {
    "journalctl": journalctl,
    "docker": docker,
    "nvidia-smi": nvidia_smi,
}


def main() -> None:
    sys.exit(PROGRAMS[os.path.basename(sys.argv[0])](sys.argv[1:]))
