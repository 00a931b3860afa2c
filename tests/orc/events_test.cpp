// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Names, tags, events and usage, as an ORC host asks for them.

#include "kit.h"

#include <llvm/ExecutionEngine/JITLink/JITLinkDylib.h>

using namespace llvm;
using jitmem::orc::MemoryManager;

namespace {

struct Told {
  uint32_t Kind;
  std::string Name, DylibName;
  uint64_t Tag, Time;
};

// What an observer was told of allocations.
struct Journal {
  std::mutex Lock;
  std::vector<Told> Events;

  std::function<void(const jitmem_event &)> observer() {
    return [this](const jitmem_event &E) {
      std::lock_guard<std::mutex> Held(Lock);
      if (const jitmem_allocation *A = E.allocation)
        Events.push_back(
            {E.kind, A->name ? A->name : "", A->dylib_name ? A->dylib_name : "", A->tag, E.time});
    };
  }
};

class EventsTest : public ::testing::TestWithParam<Kind> {
protected:
  jitmem::orc::Options options() {
    jitmem::orc::Options O;
    O.Names = true;
    O.Observer = Seen.observer();
    O.EventTimes = true;
    O.Usage = true;
    O.Tag = [](const jitlink::JITLinkDylib *JD, const jitlink::LinkGraph &G) {
      return JD ? G.getName().size() : 0;
    };
    return O;
  }

  Journal Seen;
};

TEST_P(EventsTest, GraphsAreToldByTheirNames) {
  jitlink::JITLinkDylib Main("main");
  {
    auto MM = must(createManager(GetParam(), options()));
    auto G = compat::makeGraph("seven.o");
    addContent(*G, addSection(*G, "text", RX), codeReturning(7), {16});
    Placed P(*MM, must(must(MM->allocate(&Main, *G))->finalize()));
    auto &Jitmem = static_cast<MemoryManager &>(*MM);
    jitmem_usage Usage = must(Jitmem.usage(&Main));
    EXPECT_EQ(Usage.finalized, 1u);
    EXPECT_EQ(Usage.code, codeReturning(7).size());
    EXPECT_EQ(must(Jitmem.usage(nullptr)).live, 0u);
    must(P.free());
    EXPECT_EQ(must(Jitmem.usage(&Main)).live, 0u);
  }
  ASSERT_EQ(Seen.Events.size(), 3u);
  const uint32_t Kinds[] = {JITMEM_EVENT_ALLOCATED, JITMEM_EVENT_FINALIZED,
                            JITMEM_EVENT_DEALLOCATED};
  for (size_t I = 0; I < 3; ++I) {
    EXPECT_EQ(Seen.Events[I].Kind, Kinds[I]);
    EXPECT_EQ(Seen.Events[I].Name, "seven.o");
    EXPECT_EQ(Seen.Events[I].DylibName, "main");
    EXPECT_EQ(Seen.Events[I].Tag, 7u);
    EXPECT_GT(Seen.Events[I].Time, 0u);
  }
}

TEST_P(EventsTest, ErrorsNameTheGraph) {
  jitmem::orc::Options O;
  O.Names = true;
  O.Quota = 4 * KiB;
  auto MM = must(createManager(GetParam(), O));
  auto G = compat::makeGraph("large.o");
  addZeroFill(*G, addSection(*G, "data", RW), 64 * KiB);
  jitlink::JITLinkDylib Main("main");
  EXPECT_TRUE(mentions(messageOf(MM->allocate(&Main, *G)),
                       {"\"large.o\", JITDylib \"main\"", "quota of 4096"}));
}

// LLVM's names are any bytes of any length.
TEST_P(EventsTest, NoNameKeepsAGraphFromBeingLinked) {
  auto MM = must(createManager(GetParam(), options()));
  std::string Long = std::string(4095, 'x') + "\xc3\xa9\xff";
  for (const std::string &Name : {Long, std::string("\xff\xfe"), std::string()}) {
    auto G = compat::makeGraph(Name);
    addContent(*G, addSection(*G, "text", RX), codeReturning(7), {16});
    Placed P(*MM, must(must(MM->allocate(nullptr, *G))->finalize()));
  }
  EXPECT_EQ(Seen.Events[0].Name, std::string(4095, 'x'));
  EXPECT_EQ(Seen.Events[3].Name, "\xef\xbf\xbd\xef\xbf\xbd");
  EXPECT_EQ(Seen.Events[6].Name, "");
}

TEST_P(EventsTest, WithoutOptionsNothingIsKnown) {
  auto MM = must(createManager(GetParam()));
  EXPECT_TRUE(mentions(messageOf(static_cast<MemoryManager &>(*MM).usage(nullptr)), {"usage"}));
}

INSTANTIATE_TEST_SUITE_P(All, EventsTest, jitmemKinds(), kindName);

} // namespace
