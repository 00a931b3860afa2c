# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""An executor that sends descriptors to its controller, of files that may block the process that looks at them, maps or closes
them: python3 hostile_files.py DESCRIPTOR WHERE FILE

It serves the controller at the other end of the socket DESCRIPTOR and sends them with a message of the kind that WHERE
says. On stdout it says "ready" when the first message is sent, and "sent" or "refused" each time it sends any."""

import array
import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys

import test_hostile as hostile
import wire
from wire import CALL, RESULT, message, u64

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_REC, MS_PRIVATE, MNT_DETACH = 0x4000, 0x40000, 2
FUSE_INIT, FUSE_OPEN = 26, 14
MIB = 1 << 20


def check(result):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def own_mounts():
    """Has this process mount what no other process sees."""
    user, group = os.getuid(), os.getgid()
    check(LIBC.unshare(CLONE_NEWNS | (CLONE_NEWUSER if user else 0)))
    if user:
        for name, line in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)
    check(LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))


def answer_fuse(device):
    """A file system that has answered to nothing but the beginning and the first opening. The kernel then waits for
    answers until this process ends."""
    while True:
        request = os.read(device, 1 << 18)
        size, opcode, number = struct.unpack_from("<IIQ", request)
        if opcode == FUSE_INIT:
            # The version, then how much may be read ahead, flags, and limits.
            body = struct.pack("<IIIIHHIIHHIII", 7, 31, 0, 0, 16, 16, 1 << 16, 1, 0, 0, 0, 0, 0) + bytes(20)
        elif opcode == FUSE_OPEN:
            body = struct.pack("<QII", 1, 0, 0)
        else:
            continue
        os.write(device, struct.pack("<IiQ", 16 + len(body), 0, number) + body)


def fuse_file():
    own_mounts()
    device = os.open("/dev/fuse", os.O_RDWR)
    place = f"/tmp/jitmem-fuse-{os.getpid()}"
    os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o600))
    options = f"fd={device},rootmode=100600,user_id=0,group_id=0"
    check(LIBC.mount(b"none", place.encode(), b"fuse", 0, options.encode()))
    server = os.fork()
    if server == 0:
        os.closerange(0, 3)
        answer_fuse(device)
    os.close(device)
    file = os.open(place, os.O_RDWR)
    # It stays for as long as the file is open.
    check(LIBC.umount2(place.encode(), MNT_DETACH))
    os.unlink(place)
    return file, server


def lingering_socket():
    """Data that are never read, and that closing waits for."""
    listener = socket.create_server(("127.0.0.1", 0))
    ours = socket.create_connection(listener.getsockname())
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    ours.setblocking(False)
    try:
        while True:
            ours.send(bytes(MIB))
    except BlockingIOError:
        pass
    # Its other end stays, in the listener's queue.
    listener.detach()
    return ours.detach()


def memory(size=MIB, seals=0, huge=False):
    flags = os.MFD_ALLOW_SEALING | (os.MFD_HUGETLB if huge else 0)
    file = os.memfd_create("answer", flags)
    os.ftruncate(file, size)
    if seals:
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    return file


def files(kind):
    """Descriptors of a kind, and the process that must end before this one can."""
    if kind == "fuse":
        file, server = fuse_file()
        return [file], server
    if kind == "flood":
        return [os.open("/dev/null", os.O_RDWR)] * 253, 0
    return [
        {
            "linger": lingering_socket,
            "pipe": lambda: os.pipe()[0],
            "folder": lambda: os.open("/", os.O_RDONLY),
            "proc": lambda: os.open("/proc/self/mem", os.O_RDWR),
            "memfd": memory,
            "sealed-memfd": lambda: memory(seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW),
            "huge-memfd": lambda: memory(2 * MIB, huge=True),
            "endless-memfd": lambda: memory(1 << 62),
            "path": lambda: os.open("/", os.O_PATH),
        }[kind]()
    ], 0


def send(end, data, along):
    """Sends, with the descriptors if the controller's kernel lets them through; says so."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", along))]
    try:
        end.sendmsg([data], rights)
        print("sent", flush=True)
    except PermissionError:
        print("refused", flush=True)
        end.send(data)


def read_call(end):
    head, along, *_ = socket.recv_fds(end, 32, 8)
    if len(head) < 32:
        raise wire.Ended
    size, opcode, number, tag = struct.unpack("<4Q", head)
    assert opcode == CALL
    return number, tag, wire.read_exactly(end.fileno(), size - 32), along


def serve(end, where, along):
    greeting = hostile.setup(hostile.TAKES_DESCRIPTORS if where in ("token", "channel") else hostile.SERVICE)
    if where == "greeting":
        send(end, greeting, along)
    else:
        end.sendall(greeting)
    print("ready", flush=True)
    while True:
        number, tag, body, brought = read_call(end)
        answer = hostile.opened() if tag == hostile.OPEN else b"\1"
        channel = None
        if brought:
            # A session, a kind, a cookie, and the token.
            token, channel = body[8 + 1 + 8 + 8 :], socket.socket(fileno=brought[0])
            if where == "token":
                send(channel, token, along)
            else:
                channel.send(token)
        if where == "answer" and tag == hostile.OPEN:
            send(end, message(RESULT, number, 0, answer), along)
        else:
            end.sendall(message(RESULT, number, 0, answer))
        if where == "token" and channel:
            return
        if where == "channel" and channel:
            while data := channel.recv(MIB):
                number = struct.unpack("<4Q", data[:32])[2]
                # A body of which nothing is in the packet.
                send(channel, message(RESULT, number, size=32 + 4096), along)


def main():
    descriptor, where, kind = sys.argv[1:]
    along, server = files(kind)
    try:
        serve(socket.socket(fileno=int(descriptor)), where, along)
    except (wire.Ended, OSError):
        pass
    finally:
        if server:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
        # The lingering socket as well.
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
