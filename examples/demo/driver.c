// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The work that the demo does in linked code. The build makes an object file of it, and the JIT
// links that object against the libraries, so it runs in whatever process the JIT links for. Each
// demo_ function has main's signature, tells what it did unless its last argument is "quiet", and
// returns the number of wrong answers.
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

typedef struct {
  const char *name;
  int quiet;
  int wrong;
} Report;

static Report report_start(const char *name, int argc, char **argv) {
  Report report = {name, argc > 1 && strcmp(argv[argc - 1], "quiet") == 0, 0};
  return report;
}

static int report_end(const Report *report, const char *what) {
  if (!report->quiet && !report->wrong)
    printf("  %-8s%s\n", report->name, what);
  // The host prints through a stream of its own, so nothing may stay in this one.
  fflush(stdout);
  return report->wrong;
}

static void expect_number(Report *report, const char *what, long long got, long long expected) {
  if (got == expected)
    return;
  printf("  %-8swrong: %s is %lld, expected %lld\n", report->name, what, got, expected);
  ++report->wrong;
}

static void expect_text(Report *report, const char *what, const char *got, const char *expected) {
  if (got && strcmp(got, expected) == 0)
    return;
  printf("  %-8swrong: %s is '%s', expected '%s'\n", report->name, what, got ? got : "(null)",
         expected);
  ++report->wrong;
}

// Coroutines, closures, patterns, sorting with a callback, and an error that is caught: the last
// goes through setjmp and longjmp across frames of linked code.
static const char lua_script[] =
    "local function sieve(limit)\n"
    "  local composite, primes = {}, {}\n"
    "  for i = 2, limit do\n"
    "    if not composite[i] then\n"
    "      primes[#primes + 1] = i\n"
    "      for j = i * i, limit, i do composite[j] = true end\n"
    "    end\n"
    "  end\n"
    "  return #primes\n"
    "end\n"
    "local fibonacci = coroutine.wrap(function()\n"
    "  local a, b = 0, 1\n"
    "  while true do coroutine.yield(a); a, b = b, a + b end\n"
    "end)\n"
    "local last\n"
    "for i = 0, 90 do last = fibonacci() end\n"
    "local words = {}\n"
    "for word in ('one manager links every library'):gmatch('%a+') do words[#words + 1] = word "
    "end\n"
    "table.sort(words, function(a, b) return #a < #b or #a == #b and a < b end)\n"
    "local _, message = pcall(function() error({code = 42}) end)\n"
    "return sieve(10000), last, table.concat(words, ' '), message.code, math.floor(math.sin(1) * "
    "1e6)\n";

int demo_lua(int argc, char **argv) {
  Report report = report_start("lua", argc, argv);
  lua_State *lua = luaL_newstate();
  if (!lua) {
    puts("  lua     cannot make a state: out of memory");
    return 1;
  }
  luaL_openlibs(lua);
  char what[256] = "";
  if (luaL_dostring(lua, lua_script) != LUA_OK) {
    printf("  lua     the script failed: %s\n", lua_tostring(lua, -1));
    ++report.wrong;
  } else {
    expect_number(&report, "primes below 10000", lua_tointeger(lua, 1), 1229);
    expect_number(&report, "fibonacci(90)", lua_tointeger(lua, 2), 2880067194370816120);
    expect_text(&report, "sorted words", lua_tostring(lua, 3), "one every links library manager");
    expect_number(&report, "code of the caught error", lua_tointeger(lua, 4), 42);
    expect_number(&report, "sin(1) in millionths", lua_tointeger(lua, 5), 841470);
    snprintf(what, sizeof what,
             "%s: %lld primes below 10000, fibonacci(90) = %lld, caught error %lld", LUA_RELEASE,
             (long long)lua_tointeger(lua, 1), (long long)lua_tointeger(lua, 2),
             (long long)lua_tointeger(lua, 4));
  }
  lua_close(lua);
  return report_end(&report, what);
}

static int sql_failed(Report *report, sqlite3 *db, const char *sql) {
  printf("  sqlite  '%s' failed: %s\n", sql, sqlite3_errmsg(db));
  return ++report->wrong;
}

// Runs one statement and copies the first column of its first row.
static int sql_text(Report *report, sqlite3 *db, const char *sql, char *text, size_t size) {
  sqlite3_stmt *query = NULL;
  text[0] = '\0';
  if (sqlite3_prepare_v2(db, sql, -1, &query, NULL) != SQLITE_OK ||
      sqlite3_step(query) != SQLITE_ROW) {
    sqlite3_finalize(query);
    return sql_failed(report, db, sql);
  }
  const unsigned char *column = sqlite3_column_text(query, 0);
  snprintf(text, size, "%s", column ? (const char *)column : "(null)");
  sqlite3_finalize(query);
  return 0;
}

static int sql_fill(Report *report, sqlite3 *db) {
  static const char insert[] = "INSERT INTO city(name, people, country) VALUES (?1, ?2, ?3)";
  static const char *countries[] = {"north", "east", "south", "west"};
  static const char schema[] =
      "CREATE TABLE city(id INTEGER PRIMARY KEY, name TEXT, people INT, country TEXT);"
      "CREATE INDEX by_country ON city(country, people);"
      "CREATE VIRTUAL TABLE note USING fts5(body);"
      "INSERT INTO note VALUES ('packed pages'), ('sealed pages'), ('no copies');";
  sqlite3_stmt *row = NULL;
  if (sqlite3_exec(db, schema, NULL, NULL, NULL) != SQLITE_OK)
    return sql_failed(report, db, schema);
  if (sqlite3_exec(db, "BEGIN", NULL, NULL, NULL) != SQLITE_OK ||
      sqlite3_prepare_v2(db, insert, -1, &row, NULL) != SQLITE_OK)
    return sql_failed(report, db, insert);
  for (int i = 1; i <= 2000; ++i) {
    char name[16];
    snprintf(name, sizeof name, "city %d", i);
    sqlite3_bind_text(row, 1, name, -1, SQLITE_TRANSIENT);
    sqlite3_bind_int(row, 2, i * 37 % 1000);
    sqlite3_bind_text(row, 3, countries[i % 4], -1, SQLITE_STATIC);
    if (sqlite3_step(row) != SQLITE_DONE || sqlite3_reset(row) != SQLITE_OK) {
      sqlite3_finalize(row);
      return sql_failed(report, db, insert);
    }
  }
  sqlite3_finalize(row);
  if (sqlite3_exec(db, "COMMIT", NULL, NULL, NULL) != SQLITE_OK)
    return sql_failed(report, db, "COMMIT");
  return 0;
}

int demo_sqlite(int argc, char **argv) {
  static const struct {
    const char *what, *sql, *expected;
  } questions[] = {
      {"2000 rows", "SELECT count(*) || ' rows' FROM city", "2000 rows"},
      {"sums by country",
       "SELECT group_concat(country || ' ' || total, ', ') FROM"
       " (SELECT country, sum(people) AS total FROM city GROUP BY country ORDER BY total DESC, "
       "country)",
       "west 250500, south 250000, east 249500, north 249000"},
      {"recursion",
       "WITH RECURSIVE f(n, v) AS (SELECT 1, 1 UNION ALL SELECT n + 1, v * (n + 1) FROM f WHERE n "
       "< 15)"
       " SELECT 'factorial ' || max(v) FROM f",
       "factorial 1307674368000"},
      {"window function",
       "SELECT name FROM (SELECT name, row_number() OVER (PARTITION BY country ORDER BY people "
       "DESC, id) AS r"
       " FROM city WHERE country = 'east') WHERE r = 1",
       "city 81"},
      {"full text search",
       "SELECT count(*) || ' notes on pages' FROM note WHERE note MATCH 'pages'",
       "2 notes on pages"},
      {"JSON", "SELECT json_extract('{\"a\":[1,2,{\"b\":\"deep\"}]}', '$.a[2].b')", "deep"},
      {"integrity check", "PRAGMA integrity_check", "ok"},
  };
  Report report = report_start("sqlite", argc, argv);
  char what[256] = "", answer[128];
  sqlite3 *db = NULL;
  if (sqlite3_open(":memory:", &db) != SQLITE_OK) {
    printf("  sqlite  cannot open a database: %s\n", db ? sqlite3_errmsg(db) : "out of memory");
    ++report.wrong;
  } else if (!sql_fill(&report, db)) {
    const size_t count = sizeof questions / sizeof *questions;
    for (size_t i = 0; i < count; ++i)
      if (!sql_text(&report, db, questions[i].sql, answer, sizeof answer))
        expect_text(&report, questions[i].what, answer, questions[i].expected);
    snprintf(what, sizeof what,
             "SQLite %s: %zu kinds of queries, from window functions to full text search and JSON",
             sqlite3_libversion(), count);
  }
  if (sqlite3_close(db) != SQLITE_OK) {
    puts("  sqlite  cannot close the database: statements are still open");
    ++report.wrong;
  }
  return report_end(&report, what);
}

enum { sample_size = 1 << 18 };

// Text-like input that is the same on every machine: words drawn by a small linear congruential
// generator.
static unsigned char *make_sample(void) {
  static const char *words[] = {"link ",    "page ",    "chunk ",    "window ",
                                "segment ", "symbol\n", "finalize ", "8086 "};
  unsigned char *sample = malloc(sample_size);
  unsigned state = 1;
  for (size_t at = 0; sample && at < sample_size;) {
    state = state * 1103515245u + 12345u;
    for (const char *word = words[state >> 28 & 7]; *word && at < sample_size;)
      sample[at++] = (unsigned char)*word++;
  }
  return sample;
}

static int out_of_memory(const char *name) {
  printf("  %-8scannot allocate the buffers: out of memory\n", name);
  return 1;
}

int demo_zlib(int argc, char **argv) {
  Report report = report_start("zlib", argc, argv);
  uLong bound = compressBound(sample_size);
  unsigned char *sample = make_sample(), *packed = malloc(bound), *unpacked = malloc(sample_size);
  if (!sample || !packed || !unpacked)
    return out_of_memory("zlib");
  uLongf packed_size = bound, unpacked_size = sample_size;
  expect_number(&report, "the check value of crc32",
                (long long)crc32(0, (const Bytef *)"123456789", 9), 0xcbf43926);
  expect_number(&report, "compress", compress2(packed, &packed_size, sample, sample_size, 9), Z_OK);
  expect_number(&report, "uncompress", uncompress(unpacked, &unpacked_size, packed, packed_size),
                Z_OK);
  expect_number(&report, "the size after the round trip", (long long)unpacked_size, sample_size);
  expect_number(&report, "the difference after the round trip",
                memcmp(sample, unpacked, sample_size), 0);
  expect_number(&report, "packing by half", packed_size < sample_size / 2, 1);
  packed[packed_size / 2] ^= 0x10;
  unpacked_size = sample_size;
  expect_number(&report, "damage found",
                uncompress(unpacked, &unpacked_size, packed, packed_size) != Z_OK, 1);
  char what[256];
  snprintf(what, sizeof what, "zlib %s: %d bytes to %lu and back, damage found", zlibVersion(),
           sample_size, (unsigned long)packed_size);
  free(sample);
  free(packed);
  free(unpacked);
  return report_end(&report, what);
}

int demo_zstd(int argc, char **argv) {
  static const int levels[] = {1, 19};
  Report report = report_start("zstd", argc, argv);
  size_t bound = ZSTD_compressBound(sample_size), packed_size[2] = {0, 0};
  unsigned char *sample = make_sample(), *packed = malloc(bound), *unpacked = malloc(sample_size);
  ZSTD_CCtx *compressor = ZSTD_createCCtx();
  if (!sample || !packed || !unpacked || !compressor)
    return out_of_memory("zstd");
  ZSTD_CCtx_setParameter(compressor, ZSTD_c_checksumFlag, 1);
  for (int i = 0; i < 2; ++i) {
    ZSTD_CCtx_setParameter(compressor, ZSTD_c_compressionLevel, levels[i]);
    packed_size[i] = ZSTD_compress2(compressor, packed, bound, sample, sample_size);
    if (ZSTD_isError(packed_size[i])) {
      printf("  zstd    cannot compress at level %d: %s\n", levels[i],
             ZSTD_getErrorName(packed_size[i]));
      ++report.wrong;
      continue;
    }
    memset(unpacked, 0, sample_size);
    expect_number(&report, "the size after the round trip",
                  (long long)ZSTD_decompress(unpacked, sample_size, packed, packed_size[i]),
                  sample_size);
    expect_number(&report, "the difference after the round trip",
                  memcmp(sample, unpacked, sample_size), 0);
    packed[packed_size[i] / 2] ^= 0x10;
    expect_number(&report, "damage found",
                  ZSTD_isError(ZSTD_decompress(unpacked, sample_size, packed, packed_size[i])) != 0,
                  1);
  }
  expect_number(&report, "packing tighter at a higher level", packed_size[1] < packed_size[0], 1);
  char what[256];
  snprintf(what, sizeof what,
           "Zstandard %s: %d bytes to %zu and back, to %zu at level %d, damage found",
           ZSTD_versionString(), sample_size, packed_size[0], packed_size[1], levels[1]);
  ZSTD_freeCCtx(compressor);
  free(sample);
  free(packed);
  free(unpacked);
  return report_end(&report, what);
}

// A bug in the caller of a library: a small number where a pointer should be.
int demo_crash(int argc, char **argv) {
  Report report = report_start("crash", argc, argv);
  volatile size_t address = 8;
  volatile uLong sum = crc32(0, (const Bytef *)address, 9);
  expect_number(&report, "the sum of bytes that are not there", (long long)sum, 0);
  return report_end(&report, "");
}
