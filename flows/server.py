"""A Prefect server on this machine: with SQLite, or with a PostgreSQL of its own. It reaches nobody, and ends with us.

    python -m flows.server --database postgres

For one machine SQLite will do. With several workers writing it says "database is locked"; PostgreSQL does not.
"""

import argparse
import contextlib
import glob
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hft2ane.errors import BadInput, Hft2aneError, Unavailable

Database = Literal["sqlite", "postgres"]
User = pwd.struct_passwd

HOST = "127.0.0.1"
PORT = 4200  # Prefect's own
HOME = Path(".prefect") / "server"
STARTING = 180.0  # seconds: the first start makes the tables, and the machine may be busy
STOPPING = 20.0
SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    # A minute otherwise: of a run that was lost while the server was away it would forget that it waits for a sign.
    "PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER": "P7D",
}
# Of a client, which this is not; they may name another server.
FOREIGN = ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE", "PREFECT_SERVER_DATABASE_CONNECTION_URL")


@dataclass(frozen=True)
class Server:
    """`url`: of its API, for PREFECT_API_URL."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


@contextlib.contextmanager
def server(home: Path, database: Database = "sqlite", port: int = 0) -> Iterator[Server]:
    """One that answers, and is gone afterwards. All that it keeps is below `home`.

    `port` 0: any free one. A PREFECT_SERVER_… of the environment is respected, so that one can ask for a password
    (PREFECT_SERVER_API_AUTH_STRING). BadInput; Unavailable: it does not come up."""
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    with contextlib.ExitStack() as stack:
        address = f"sqlite+aiosqlite:///{home / 'prefect.db'}"
        if database == "postgres":
            address = stack.enter_context(postgres(home))
        pages = f"http://{HOST}:{port},http://localhost:{port}"  # other pages that a browser shows may not ask it
        environment = SETTINGS | {"PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": pages}
        environment |= {name: value for name, value in os.environ.items() if name not in FOREIGN}
        environment |= {"PREFECT_HOME": str(home), "PREFECT_SERVER_DATABASE_CONNECTION_URL": address}
        # The pages ask the API there; they do not learn it from the command.
        environment |= {"PREFECT_SERVER_API_HOST": HOST, "PREFECT_SERVER_API_PORT": str(port)}
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
        log, url = home / "server.log", f"http://{HOST}:{port}/api"
        process = stack.enter_context(running(command, log, environment))
        wait_until(lambda: answers(f"{url}/health"), process, log, "the Prefect server")
        yield Server(url, process, log)


@contextlib.contextmanager
def postgres(home: Path) -> Iterator[str]:
    """The address of a PostgreSQL of our own, for this machine only, with its data in `home`/postgres."""
    user = database_user()
    data, log, password_file = home / "postgres", home / "postgres.log", home / "postgres.password"
    if not (data / "PG_VERSION").is_file():
        initialize(data, password_file, user)
    port = free_port()
    command = [program("postgres"), "-D", str(data), "-h", HOST, "-p", str(port), "-c", "unix_socket_directories="]
    ready = [program("pg_isready"), "-q", "-h", HOST, "-p", str(port)]
    # SIGINT: connections are closed and it stops; on SIGTERM it waits for its clients.
    with running(command, log, os.environ, user, signal.SIGINT) as process:
        wait_until(lambda: subprocess.run(ready, check=False).returncode == 0, process, log, "PostgreSQL")
        yield f"postgresql+asyncpg://prefect:{password_file.read_text().strip()}@{HOST}:{port}/postgres"


def initialize(data: Path, password_file: Path, user: User | None) -> None:
    """Makes the database's files; a start that was broken off leaves none. Others on this machine have no password."""
    fresh = data.with_name("postgres.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    password_file.unlink(missing_ok=True)
    password_file.touch(mode=0o600)
    password_file.write_text(secrets.token_urlsafe(24) + "\n")
    if user:
        shutil.chown(fresh, user.pw_uid)
        shutil.chown(password_file, user.pw_uid)
    command = [program("initdb"), "-D", str(fresh), "-U", "prefect", f"--pwfile={password_file}"]
    command += ["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-instructions"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **becoming(user))
    if done.returncode:
        shutil.rmtree(fresh, ignore_errors=True)
        who = user.pw_name if user else "that runs this"
        raise BadInput(f"PostgreSQL cannot make its files in {data} as the user {who}: {done.stderr.strip()}")
    fresh.rename(data)


def database_user() -> User | None:
    """Whom PostgreSQL runs as; None: us. It refuses to be root."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise BadInput("PostgreSQL does not run as root, and there is no user postgres: run this as another user")


def becoming(user: User | None) -> dict[str, Any]:
    """For Popen. Somewhere else too: that user may not enter the folder that we are in."""
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": "/"} if user else {}


def program(name: str) -> str:
    """Debian has them outside of PATH, by version: the newest."""
    found = shutil.which(name)
    places = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), key=lambda path: float(path.split("/")[4]))
    if not found and not places:
        raise BadInput(f"{name} is not installed: apt install postgresql (or say make server, which needs none)")
    return found or places[-1]


@contextlib.contextmanager
def running(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    user: User | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with all that it starts, which is gone afterwards. What it says goes to the end of `log`."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=dict(environment),
            start_new_session=True,  # so that Ctrl-C is ours, and all of it can be ended
            **becoming(user),
        )
    try:
        yield process
    finally:
        try:
            process.send_signal(stop)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOPPING)
        finally:  # after a second Ctrl-C too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, what: str) -> None:
    end = time.monotonic() + STARTING
    while process.poll() is None:
        if ready():
            return
        if time.monotonic() > end:
            raise Unavailable(f"{what} does not answer after {STARTING:g} s; it says in {log}: {last(log)}")
        time.sleep(0.3)
    raise Unavailable(f"{what} ended with exit code {process.returncode}; it says in {log}: {last(log)}")


def last(log: Path) -> str:
    """The end of a log, in one line."""
    lines = log.read_text(errors="replace").split("\n")
    return " ".join(" ".join(lines[-8:]).split())[-600:]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def free_port() -> int:
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one in the foreground, until Ctrl-C or SIGTERM."""
    top = argparse.ArgumentParser(prog="python -m flows.server", description="A Prefect server on this machine.")
    top.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    top.add_argument("--home", type=Path, default=HOME, help=f"where it keeps all it has (default: {HOME})")
    port = int(os.environ.get("PREFECT_SERVER_API_PORT") or PORT)
    top.add_argument("--port", type=int, default=port, help=f"default: PREFECT_SERVER_API_PORT, or {PORT}")
    options = top.parse_args(arguments)
    signal.signal(signal.SIGTERM, end)
    try:
        with server(options.home, options.database, options.port) as started:
            print(f"Prefect is at {started.url.removesuffix('/api')}, its log in {started.log}. Ctrl-C ends it.")
            print(f"For whatever is to use it: export PREFECT_API_URL={started.url}", flush=True)
            code = started.process.wait()
            raise Unavailable(f"the server ended with exit code {code}; it says in {started.log}: {last(started.log)}")
    except KeyboardInterrupt:
        return 0
    except Hft2aneError as err:
        print(f"hft2ane: {err}", file=sys.stderr)
        return err.exit_code


def end(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one is enough: what was started is being stopped
    sys.exit(0)


if __name__ == "__main__":
    raise SystemExit(main())
