"""Processes of the command line without the seconds that imports take.

A server imports the heavy libraries once (none of ours, none that starts threads) and forks for every command line: the
child is `python -m qwench.cli.main` from there on, with arguments, environment, folder and files of its own. A client,
light enough to start in an instant, hands its own over and ends as the child ends.
"""

import array
import json
import os
import signal
import socket
import sys

#: what the libraries below read when they are imported: a process with other values cannot be a fork
READ = ("OMP_", "MKL_", "OPENBLAS_", "GOMP_", "TORCH_", "PYTORCH_", "ATEN_", "TRITON_", "CUDA_", "ARROW_", "MALLOC_")
READ += ("PYTHON", "LANG", "LC_", "LD_", "TZ")
HEAVY = (
    "torch", "numpy", "pandas", "pyarrow.parquet", "pyarrow.dataset", "pyarrow.compute", "pydantic", "typer", "jinja2",
    "safetensors.torch", "tokenizers", "lance_namespace", "rich.console", "rich.progress",
)  # fmt: skip


def read(env: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in env.items() if k.startswith(READ)}


class Forks:
    """The server, seen from the tests."""

    def __init__(self, folder: str) -> None:
        import subprocess

        self.env = read(dict(os.environ))
        self.path = os.path.join(folder, "forks")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen()
        self.stop = os.pipe()
        with listener:
            kept = [listener.fileno(), self.stop[0]]
            self.process = subprocess.Popen([sys.executable, __file__, "serve", *map(str, kept)], pass_fds=kept)

    def command(self, args: list[str], env: dict[str, str]) -> list[str]:
        """The command line that does what `python -m qwench.cli.main ARGS` does."""
        if read(env) != self.env:
            return [sys.executable, "-m", "qwench.cli.main", *args]
        return [*self.asking(), *args]

    def asking(self, program: str = "") -> list[str]:
        """The words before the arguments; `program` is Python to run in place of the command line's module."""
        return [sys.executable, "-I", "-S", __file__, "ask", self.path, program]

    def close(self) -> None:
        os.close(self.stop[1])
        self.process.wait()


def serve(listener: socket.socket, stop: int) -> str:
    """Fork for whoever asks; returns in the child only, with its program."""
    import importlib
    import select

    del sys.path[0]
    for name in HEAVY:
        importlib.import_module(name)
    wake, signalled = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(signalled)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    asking: dict[socket.socket, int] = {}
    while True:
        ready = select.select([listener, wake, stop, *asking], [], [])[0]
        if stop in ready:
            for pid in asking.values():
                os.kill(pid, signal.SIGKILL)
            sys.exit(0)
        if wake in ready:
            os.read(wake, 4096)
            for client, pid in list(asking.items()):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    client.sendall(status.to_bytes(4, "little"))
                    client.close()
                    del asking[client]
        # A client that is gone was killed, and what it stands for is too.
        for client in [c for c in asking if c in ready]:
            os.kill(asking[client], signal.SIGKILL)
        if listener not in ready:
            continue
        client = listener.accept()[0]
        head, control, _, _ = client.recvmsg(4, socket.CMSG_SPACE(3 * array.array("i").itemsize))
        files = array.array("i", control[0][2])
        with client.makefile("rb") as stream:
            asked = json.loads(stream.read(int.from_bytes(head, "little")))
        if pid := os.fork():
            asking[client] = pid
            client.sendall(pid.to_bytes(4, "little"))
            for file in files:
                os.close(file)
            continue
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # Where the tests run in the background of a shell, SIGINT is ignored, and that is handed on.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for one in (listener, client, *asking):
            one.close()
        for one in (wake, signalled, stop):
            os.close(one)
        return become(files, **asked)


def become(files: array.array, numbers: list[int], program: str, args: list[str], env: dict[str, str], cwd: str) -> str:
    """Take what a new process is given; returns its program."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        opened = None
        if number in numbers:
            os.dup2(files[numbers.index(number)], number)
            errors, buffering = ("backslashreplace", 1) if number == 2 else ("strict", -1)
            mode = "w" if number else "r"
            opened = open(number, mode, buffering, "utf-8", errors, closefd=False)  # noqa: SIM115
        else:
            os.close(number)
        setattr(sys, name, opened)
        setattr(sys, f"__{name}__", opened)
    for file in files:
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = ["qwench", *args]
    sys.path.insert(0, cwd)
    return program


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def ask(path: str, program: str, *args: str) -> None:
    """Hand over what this process has, and end as the fork ends."""
    numbers = [number for number in range(3) if is_open(number)]
    given = {"numbers": numbers, "program": program, "args": args, "env": dict(os.environ), "cwd": os.getcwd()}
    asked = json.dumps(given).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        files = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))
        server.sendmsg([len(asked).to_bytes(4, "little")], [files])
        server.sendall(asked)
        pid = int.from_bytes(server.recv(4), "little")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: os.kill(pid, number))
        said = server.recv(4)
    code = os.waitstatus_to_exitcode(int.from_bytes(said, "little")) if said else 1
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        ask(*sys.argv[2:])
    elif program := serve(socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3])):
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
    else:
        import runpy

        runpy.run_module("qwench.cli.main", run_name="__main__", alter_sys=True)
