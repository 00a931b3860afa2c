#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""PostgreSQL's JIT with its own memory and with jitmem's, unchanged: answers, system calls, memory, time.

usage: postgres.py LIBJITMEM-LLVM-14.SO [--queries N] [--pg DIR]

Starts servers of its own on a socket in a temporary folder, as user postgres where root runs it.
"""

import argparse
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

CALLS = ("mmap", "munmap", "mprotect")
#: Cursors whose jitted code is there at the same time.
OPEN = 10
#: Most mappings that a backend has for jitmem's sake where no jitted code is there, however many queries it
#: has run: five of a window, two of each of the preload's files, and what malloc maps for its records.
OWN_MAPPINGS = 16
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

    def resident(self):
        """Bytes, and mappings."""
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        maps = pathlib.Path(f"/proc/{self.pid}/maps").read_text()
        return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1]), maps.count("\n")

    def processor_seconds(self):
        """What the backend has computed for."""
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

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


def measure(server, count):
    """Queries with a wrong answer, and figures of a server."""
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

    session = Session(server)
    session.run(JIT, "select sum(abalance) from accounts")
    calls = session.system_calls(short_queries(200))
    before, begin = session.processor_seconds(), time.perf_counter()
    session.run(*short_queries(count))
    elapsed, computed = time.perf_counter() - begin, session.processor_seconds() - before
    idle, mappings = session.resident()
    session.run("begin", *(f"declare c{i} cursor for select abalance + {i} from accounts" for i in range(OPEN)))
    session.run(*(f"fetch 1 from c{i}" for i in range(OPEN)))
    figures = {
        **{call + "s": n for call, n in calls.items()},
        "us per query": round(elapsed / count * 1e6),
        "us of processor": round(computed / count * 1e6),
        "resident KiB": idle // 1024,
        "mappings": mappings,
        f"with {OPEN} open": session.resident()[1],
    }
    session.close()
    return wrong, figures


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


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("preload", type=os.path.realpath)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--pg", default="/usr/lib/postgresql/15/bin")
    options = parser.parse_args()
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    failed = []
    with tempfile.TemporaryDirectory(prefix="jitmem-postgres-") as folder:
        # Where the server's user can read it.
        name = os.path.basename(options.preload)
        part = re.sub(r".*-(\d+)\.so", r"llvm-\1.so", name)
        os.mkdir(folder + "/jitmem")
        shutil.copy(options.preload, folder)
        shutil.copy(os.path.dirname(options.preload) + "/jitmem/" + part, folder + "/jitmem")
        if user:
            shutil.chown(folder, "postgres", "postgres")
            os.chmod(folder, 0o711)
        subprocess.run(
            [*user, options.pg + "/initdb", "-D", folder + "/data", "-A", "trust", "-N", "--no-instructions"],
            check=True, cwd="/", stdout=subprocess.DEVNULL,
        )
        stock = Server(options.pg, folder, user)
        with stock:
            session = Session(stock)
            session.run("set jit=off", TABLES)
            session.close()
            figures = {"stock": measure(stock, options.queries)}
            told = {"stock": listeners(stock)}
        with Server(options.pg, folder, user, os.path.join(folder, name)) as ours:
            figures["jitmem"] = measure(ours, options.queries)
            told["jitmem"] = listeners(ours)
        columns = list(figures["stock"][1])
        print(f"{options.queries} queries in one backend; calls of 200 of them\n{'':8}"
              + "".join(f"{column:>17}" for column in [*columns, "gdb", "jitdump"]))
        for name, (wrong, found) in figures.items():
            print(f"{name:8}" + "".join(f"{n:17}" for n in [*found.values(), *told[name]]))
            failed += [f"{name}: another answer with jit=on: {query}" for query in wrong]
        reports = pathlib.Path(ours.report).read_text().splitlines()
        backends = [line for line in reports if "layers=0" not in line]
        print(max(backends, key=lambda line: int(re.search(r"allocations=(\d+)", line)[1]), default="no report"))
        ours, theirs = figures["jitmem"][1], figures["stock"][1]
        called, stock_called = (sum(of[call + "s"] for call in CALLS) for of in (ours, theirs))
        if called * 100 > stock_called:
            failed.append(f"jitmem: {called} memory-mapping calls, more than 1 % of stock's {stock_called}")
        if ours["mappings"] > theirs["mappings"] + OWN_MAPPINGS:
            failed.append("jitmem: mappings that are not those of its window and files")
        if ours[f"with {OPEN} open"] > theirs[f"with {OPEN} open"]:
            failed.append("jitmem: more mappings than stock where jitted code is there")
        if not backends or not all("failures=0" in line and 'note=""' in line for line in backends):
            failed.append("jitmem: a backend did not use it: " + "\n".join(reports))
        for number, tool in enumerate(("gdb", "perf")):
            if not told["stock"][number] or told["jitmem"][number] != told["stock"][number]:
                failed.append(f"{tool} is told of {told}")
        if failed:
            print(pathlib.Path(folder, "log").read_text()[-3000:])
    for line in failed:
        print("FAIL", line)
    sys.exit(bool(failed))


main()
