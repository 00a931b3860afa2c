# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""A controller in a process of its own: python3 controller_alone.py DESCRIPTOR LEFT

It makes a manager of shared pages over the socket DESCRIPTOR, frees everything, waits until no more than LEFT descriptors
are left, and prints the status and what it was told."""

import os
import socket
import sys
import time

from test_hostile import Controller


def descriptors():
    return len(os.listdir("/proc/self/fd"))


end = socket.socket(fileno=int(sys.argv[1]))
before = descriptors() - 1
controller = Controller(end)
status = controller.status or controller.manager()
controller.free()
# A socket that it could not use stays the host's.
most = before + int(sys.argv[2]) + bool(controller.status)
# Threads of a connection that has ended close theirs.
while descriptors() > most:
    time.sleep(0.001)
print(status, controller.message, flush=True)
