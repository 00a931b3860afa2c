#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""PostgreSQL's JIT with its own memory and with jitmem's, unchanged: answers, system calls, memory, time.

usage: postgres.py LIBJITMEM-LLVM-14.SO [--queries N] [--pg DIR]

Starts two servers of its own on sockets in a temporary folder, as user postgres where root runs it. One backend of
each runs the queries in turns with the other.
"""

import argparse
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

CALLS = ("mmap", "munmap", "mprotect")
#: Cursors whose jitted code is there at the same time.
OPEN = 10
#: How often the two backends take turns.
ROUNDS = 10
#: Shared mappings of a window: its code, for running and for writing.
WINDOW_SHARED = 2
#: Mappings with a name that a backend has for jitmem's sake where no jitted code is there, however many queries it has run:
#: two of a window and four of the preload's files.
OWN_NAMED = 6
#: By how many mappings without a name two backends of these servers differ. The address-space layout decides which of them
#: are neighbours and become one: 0 to 9 more in 17 runs, of which up to four are jitmem's. One per query would be 200.
UNNAMED_DIFFER = 30
#: Most memory in KiB of what nothing lies behind that a backend has for jitmem's sake, likewise, and of the preload's files.
OWN_ANONYMOUS = 256
#: The functions that are linked together are those of link-time optimization; without it nearly all files are resident.
OWN_FILES = 1536 if os.environ.get("CARGO_PROFILE_RELEASE_LTO") == "off" else 1024
#: By how many KiB two backends of one server differ in what they have of the same files.
FILES_DIFFER = 640
JIT = "set jit=on; set jit_above_cost=0"
#: Inlining reads PostgreSQL's bitcode, which takes more calls and time than all that is measured.
WHOLE = "set jit_optimize_above_cost=0; set jit_inline_above_cost=0"
TABLES = """
create table customer as select i as c_custkey, i % 25 as c_nationkey, 'Customer#' || i as c_name,
  (array['BUILDING','AUTOMOBILE','MACHINERY','HOUSEHOLD','FURNITURE'])[1 + i % 5] as c_segment
  from generate_series(1, 300) i;
create table orders as select i as o_orderkey, 1 + (i * 37) % 300 as o_custkey,
  date '1992-01-01' + (i * 13) % 2400 as o_orderdate, (i % 5) || '-PRIO' as o_priority
  from generate_series(1, 3000) i;
create table lineitem as select 1 + (i * 7) % 3000 as l_orderkey, 1 + i % 50 as l_quantity,
  ((i * 91) % 100000)::numeric / 100 as l_price, ((i % 11)::numeric / 100) as l_discount,
  ((i % 9)::numeric / 100) as l_tax, (array['A','N','R'])[1 + i % 3] as l_flag,
  (array['O','F'])[1 + i % 2] as l_status, date '1992-01-01' + (i * 17) % 2500 as l_shipdate,
  (array['AIR','MAIL','SHIP','RAIL'])[1 + i % 4] as l_mode
  from generate_series(1, 12000) i;
create table accounts as select i as aid, i % 10 as bid, (i * 31) % 1000 as abalance
  from generate_series(1, 1000) i;
create unique index on accounts (aid);
analyze;
"""
#: After TPC-H's queries 1, 3, 4, 5, 6, 12, 13, 14; and errors, which leave jitted code by longjmp.
ANALYTIC = [
    "select l_flag, l_status, sum(l_quantity), sum(l_price), sum(l_price * (1 - l_discount)),"
    " sum(l_price * (1 - l_discount) * (1 + l_tax)), avg(l_quantity), count(*) from lineitem"
    " where l_shipdate <= date '1998-09-02' group by 1, 2 order by 1, 2",
    "select l_orderkey, sum(l_price * (1 - l_discount)) as revenue, o_orderdate from customer, orders,"
    " lineitem where c_segment = 'BUILDING' and c_custkey = o_custkey and l_orderkey = o_orderkey and"
    " o_orderdate < date '1995-03-15' and l_shipdate > date '1995-03-15' group by 1, 3"
    " order by revenue desc, o_orderdate, l_orderkey limit 10",
    "select o_priority, count(*) from orders where o_orderdate >= date '1993-07-01' and exists (select 1"
    " from lineitem where l_orderkey = o_orderkey and l_quantity < 20) group by 1 order by 1",
    "select c_nationkey, sum(l_price * (1 - l_discount)) as revenue from customer, orders, lineitem where"
    " c_custkey = o_custkey and l_orderkey = o_orderkey group by 1 order by revenue desc",
    "select sum(l_price * l_discount) from lineitem where l_discount between 0.05 and 0.07 and"
    " l_quantity < 24",
    "select l_mode, sum(case when o_priority in ('1-PRIO', '2-PRIO') then 1 else 0 end) from orders,"
    " lineitem where o_orderkey = l_orderkey and l_mode in ('MAIL', 'SHIP') group by 1 order by 1",
    "select n, count(*) from (select c_custkey, count(o_orderkey) as n from customer left join orders on"
    " c_custkey = o_custkey group by 1) c group by 1 order by 2 desc, 1 desc",
    "select 100.0 * sum(case when l_mode like 'A%' then l_price else 0 end) / sum(l_price) from lineitem",
    "do $$ begin perform 1 / (aid - aid) from accounts; exception when division_by_zero then"
    " raise notice 'caught'; end $$",
    "select max(abalance) from accounts",
]


def short_queries(count):
    """After pgbench's: one row by its key, with an expression."""
    return [
        f"select abalance * 2 + {i}, bid from accounts where aid = {1 + i * 7 % 1000} and abalance >= 0"
        for i in range(count)
    ]


class Session:
    """One backend, through psql."""

    def __init__(self, server, options=""):
        self.psql = subprocess.Popen(
            [*server.user, server.tool("psql"), "-XqAt", "-v", "ON_ERROR_STOP=0", "-h", server.folder, "postgres"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
            env={**os.environ, "PGOPTIONS": options},
        )
        self.pid = int(self.run("select pg_backend_pid()"))

    def run(self, *queries):
        """What the queries print."""
        self.psql.stdin.write("".join(query + ";\n" for query in queries) + "\\echo -- done\n")
        self.psql.stdin.flush()
        answer = []
        for line in self.psql.stdout:
            if line == "-- done\n":
                return "".join(answer)
            answer.append(line)
        raise SystemExit(f"postgres: the session has ended: {''.join(answer)}")

    def close(self):
        self.psql.stdin.close()
        self.psql.wait()

    def memory(self):
        """KiB of memory, of it what files and what nothing lies behind, the share of it, and mappings by their kinds."""
        proc = pathlib.Path(f"/proc/{self.pid}")
        kib = dict(re.findall(r"^(\w+):\s+(\d+) kB$", (proc / "status").read_text(), re.M))
        pss = re.search(r"^Pss:\s+(\d+) kB$", (proc / "smaps_rollup").read_text(), re.M)[1]
        maps = re.findall(r"^[\da-f]+-[\da-f]+ \S\S\S(.).*?(/?[^ ]*)$[^\0]*?^Rss: +(\d+) kB$", (proc / "smaps").read_text(), re.M)
        own = sum(int(resident) for _, file, resident in maps if re.search(r"/(libjitmem-)?llvm-\d+\.so$", file))
        shared = sum(kind == "s" for kind, *_ in maps)
        named = sum(not file.isdigit() and file != "" for _, file, _ in maps)
        counts = kib["VmRSS"], kib["RssFile"], own, kib["RssAnon"], pss, len(maps), named, shared
        names = "Rss KiB", "of files", "jitmem's", "anonymous", "Pss KiB", "mappings", "named", "shared"
        return dict(zip(names, map(int, counts)))

    def processor_seconds(self):
        """What the backend has computed for."""
        return int(pathlib.Path(f"/proc/{self.pid}/schedstat").read_text().split()[0]) / 1e9

    def system_calls(self, queries):
        """How often the backend changes its mappings for the queries."""
        with tempfile.NamedTemporaryFile("r") as table:
            strace = subprocess.Popen(
                ["strace", "-c", "-f", "-o", table.name, "-e", "trace=" + ",".join(CALLS), "-p", str(self.pid)],
                stderr=subprocess.PIPE,
                text=True,
            )
            attached = strace.stderr.readline()
            if "attached" not in attached:
                raise SystemExit(f"postgres: strace: {attached}")
            self.run(*queries)
            strace.send_signal(signal.SIGINT)
            strace.communicate()
            counts = dict.fromkeys(CALLS, 0)
            for line in table:
                fields = line.split()
                if fields and fields[-1] in counts:
                    counts[fields[-1]] = int(fields[3])
            return counts


class Server:
    """A server over a folder that has tables already, or gets them."""

    def __init__(self, tools, folder, user, preload=None):
        self.tools, self.folder, self.user = tools, folder, user
        self.report = os.path.join(folder, "report")
        self.environment = {**os.environ, "LC_ALL": "C", "JITDUMPDIR": folder, "HOME": folder}
        if preload:
            self.environment.update(LD_PRELOAD=preload, JITMEM_PRELOAD_REPORT=self.report)

    def tool(self, name):
        return os.path.join(self.tools, name)

    def control(self, *arguments):
        subprocess.run(
            [*self.user, self.tool("pg_ctl"), "-s", "-w", "-D", self.folder + "/data", *arguments],
            check=True,
            cwd="/",
            env=self.environment,
            stdin=subprocess.DEVNULL,
        )

    def __enter__(self):
        self.control("-l", self.folder + "/log", "-o", f"-k {self.folder} -h '' -F", "start")
        return self

    def __exit__(self, *_):
        self.control("-m", "fast", "stop")


def wrong_answers(server):
    """Queries whose answers are others with jitted code."""
    session = Session(server)
    session.run("set jit=off")
    expected = [session.run(query) for query in ANALYTIC]
    expected_short = session.run(*short_queries(100))
    session.run(JIT, WHOLE)
    answers = [session.run(query) for query in ANALYTIC]
    wrong = [query for query, right, got in zip(ANALYTIC, expected, answers) if right != got]
    if session.run(*short_queries(100)) != expected_short:
        wrong.append("short queries")
    session.close()
    return wrong


def least_and_median(numbers):
    return f"{min(numbers) * 1e6:.0f} {statistics.median(numbers) * 1e6:.0f}"


def measure(servers, count):
    """Figures of each server: one backend of each, in turns."""
    sessions = {name: Session(server) for name, server in servers.items()}
    figures, elapsed, computed = {}, {}, {}
    for name, session in sessions.items():
        session.run(JIT, "select sum(abalance) from accounts")
        figures[name] = {call + "s": n for call, n in session.system_calls(short_queries(200)).items()}
        elapsed[name], computed[name] = [], []
    queries = short_queries(count // ROUNDS)
    for turn in range(ROUNDS):
        for name in list(sessions)[:: 1 if turn % 2 else -1]:
            session = sessions[name]
            before, begin = session.processor_seconds(), time.perf_counter()
            session.run(*queries)
            elapsed[name].append((time.perf_counter() - begin) / len(queries))
            computed[name].append((session.processor_seconds() - before) / len(queries))
    for name, session in sessions.items():
        figures[name]["us per query"] = least_and_median(elapsed[name])
        figures[name]["of processor"] = least_and_median(computed[name])
        figures[name].update(session.memory())
        session.run("begin", *(f"declare c{i} cursor for select abalance + {i} from accounts" for i in range(OPEN)))
        session.run(*(f"fetch 1 from c{i}" for i in range(OPEN)))
        busy = session.memory()
        figures[name].update({f"{OPEN} open": busy["mappings"], "their KiB": busy["Rss KiB"] - figures[name]["Rss KiB"]})
        session.close()
    return figures


def listeners(server):
    """What gdb and perf are told of jitted functions; a cursor keeps them there."""
    session = Session(server, "-c jit_debugging_support=on -c jit_profiling_support=on")
    session.run(JIT, "begin", "declare c cursor for select abalance + 1 from accounts where abalance > 3", "fetch 1 from c")
    gdb = subprocess.run(
        ["gdb", "-nx", "-batch", "-p", str(session.pid), "-ex", "info functions evalexpr"],
        capture_output=True,
        text=True,
    )
    session.close()
    named = len(re.findall(r"^0x\w+ +evalexpr\w*", gdb.stdout, re.M))
    dumps = [path for path in pathlib.Path(server.folder).rglob(f"jit-{session.pid}.dump")]
    dumped = sum(path.read_bytes().count(b"evalexpr") for path in dumps)
    return named, dumped


def install(preload, folder):
    """Copies the preload to where the server's user can read it."""
    part = "jitmem/" + re.sub(r".*-(\d+)\.so", r"llvm-\1.so", os.path.basename(preload))
    os.mkdir(folder + "/jitmem")
    for name in (os.path.basename(preload), part):
        copy = shutil.copy(os.path.join(os.path.dirname(preload), name), os.path.join(folder, name))
        # What has just been written lies in large folios, which Linux 6.18 maps whole. What has been read lies as
        # installed files do.
        with open(copy, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return os.path.join(folder, os.path.basename(preload))


def print_table(figures, told):
    columns = [*figures["stock"], "gdb", "jitdump"]
    rows = {name: [*map(str, [*found.values(), *told[name]])] for name, found in figures.items()}
    widths = [max(map(len, column)) for column in zip(columns, *rows.values())]
    for name, row in {"": columns, **rows}.items():
        print(f"{name:8}" + "  ".join(f"{text:>{width}}" for text, width in zip(row, widths)))


def faults(figures, told, reports):
    """What is worse than it may be."""
    failed = []
    backends = [line for line in reports if "layers=0" not in line]
    print(max(backends, key=lambda line: int(re.search(r"allocations=(\d+)", line)[1]), default="no report"))
    ours, theirs = figures["jitmem"], figures["stock"]
    called, stock_called = (sum(of[call + "s"] for call in CALLS) for of in (ours, theirs))
    if called * 100 > stock_called:
        failed.append(f"jitmem: {called} memory-mapping calls, more than 1 % of stock's {stock_called}")
    if ours["named"] > theirs["named"] + OWN_NAMED:
        failed.append("jitmem: mappings that are not those of its window and files")
    if ours["mappings"] - ours["named"] > theirs["mappings"] - theirs["named"] + UNNAMED_DIFFER:
        failed.append("jitmem: mappings without a name that are not those of its window and records")
    if ours["shared"] > theirs["shared"] + WINDOW_SHARED:
        failed.append("jitmem: more than one chunk of code, or a chunk of constants")
    if ours["of files"] - ours["jitmem's"] > theirs["of files"] + FILES_DIFFER:
        failed.append("jitmem: more of PostgreSQL's and LLVM's files than stock has")
    if ours["anonymous"] > theirs["anonymous"] + OWN_ANONYMOUS or ours["jitmem's"] > OWN_FILES:
        failed.append("jitmem: memory that is not that of its files and records")
    added, stock_added = (of[f"{OPEN} open"] - of["mappings"] for of in (ours, theirs))
    if added * 2 > stock_added:
        failed.append("jitmem: more than half as many mappings for jitted code as stock makes")
    if not backends or not all("failures=0" in line and 'note=""' in line for line in backends):
        failed.append("jitmem: a backend did not use it: " + "\n".join(reports))
    for number, tool in enumerate(("gdb", "perf")):
        if not told["stock"][number] or told["jitmem"][number] != told["stock"][number]:
            failed.append(f"{tool} is told of {told}")
    return failed


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("preload", type=os.path.realpath)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--pg", default="/usr/lib/postgresql/15/bin")
    options = parser.parse_args()
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    failed = []
    with tempfile.TemporaryDirectory(prefix="jitmem-postgres-") as folder:
        preload = install(options.preload, folder)
        stock = Server(options.pg, folder + "/stock", user)
        ours = Server(options.pg, folder + "/preloaded", user, preload)
        os.chmod(folder, 0o711)
        os.mkdir(stock.folder)
        if user:
            shutil.chown(stock.folder, "postgres", "postgres")
        subprocess.run(
            [*user, stock.tool("initdb"), "-D", stock.folder + "/data", "-A", "trust", "-N", "--no-instructions"],
            check=True, cwd="/", stdout=subprocess.DEVNULL,
        )
        with stock:
            session = Session(stock)
            session.run("set jit=off", TABLES)
            session.close()
        subprocess.run(["cp", "-a", stock.folder, ours.folder], check=True)
        servers = {"stock": stock, "jitmem": ours}
        with stock, ours:
            for name, server in servers.items():
                failed += [f"{name}: another answer with jit=on: {query}" for query in wrong_answers(server)]
            figures = measure(servers, options.queries)
            told = {name: listeners(server) for name, server in servers.items()}
        print(f"{options.queries} queries in one backend of each, by turns; calls of 200 of them; times: least, median")
        print_table(figures, told)
        reports = pathlib.Path(ours.report).read_text().splitlines()
        failed += faults(figures, told, reports)
        if failed:
            print(*(pathlib.Path(server.folder, "log").read_text()[-3000:] for server in servers.values()))
    for line in failed:
        print("FAIL", line)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
