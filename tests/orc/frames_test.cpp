// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What an .eh_frame section says, and what a jitdump says of it.

#include <gtest/gtest.h>
#include <jitmem/orc_frames.hpp>

#include <cstring>
#include <tuple>
#include <unistd.h>

using namespace llvm;
using namespace jitmem::orc::detail;

namespace {

constexpr uint64_t Place = 0x700000001000;

// A section that is linked at `Place`.
struct Section {
  // Version 1, these letters, alignments 1 and -8, register 16; then data and an instruction.
  size_t common(const std::string &Letters, const std::string &Data) {
    std::string Body = '\1' + Letters + '\0' + "\x01\x78\x10";
    if (!Letters.empty())
      Body += static_cast<char>(Data.size()) + Data;
    return record(0, Body + "\x0c\x07\x08");
  }

  // With four relative bytes each for where code and size are, and these bytes of data.
  void describe(size_t Common, uint64_t Start, uint32_t Size, const std::string &Data,
                const std::string &Instructions) {
    std::string Body;
    put<uint32_t>(Body, Start - (Place + Bytes.size() + 8));
    put<uint32_t>(Body, Size);
    Body += static_cast<char>(Data.size()) + Data + Instructions;
    record(Bytes.size() + 4 - Common, Body);
  }

  size_t record(uint32_t Id, const std::string &Body) {
    size_t Start = Bytes.size();
    put<uint32_t>(Bytes, 4 + Body.size());
    put<uint32_t>(Bytes, Id);
    Bytes += Body;
    return Start;
  }

  std::string Bytes;
};

template <typename T> T at(StringRef Bytes, uint64_t Offset) {
  T Value;
  EXPECT_LE(Offset + sizeof(T), Bytes.size());
  std::memcpy(&Value, Bytes.data() + Offset, sizeof(T));
  return Value;
}

// One or two functions, as C++ compilers write it: how exceptions are handled is said too.
Section withExceptions(int Count = 2) {
  Section S;
  size_t Common = S.common("zPLR", std::string("\x9b\x01\x02\x03\x04\x1b\x1b", 7));
  S.describe(Common, Place - 0x1000, 0x2d, "LSDA", "\x44\x0e\x10");
  if (Count == 2)
    S.describe(Common, Place - 0x0f00, 0x20, "LSDA", "\x44\x0e\x20");
  return S;
}

TEST(Frames, FunctionsAreFoundByTheirCode) {
  Section S = withExceptions();
  FrameSection Frames(Place, S.Bytes);
  auto First = Frames.in(Place - 0x1000, Place - 0x1000 + 0x2d);
  ASSERT_EQ(First.size(), 1u);
  EXPECT_EQ(First[0].Start, Place - 0x1000);
  EXPECT_EQ(First[0].End, Place - 0x1000 + 0x2d);
  EXPECT_EQ(First[0].Instructions, "\x44\x0e\x10");
  EXPECT_EQ(First[0].Of->Instructions, "\x0c\x07\x08");
  EXPECT_EQ(First[0].Of->Factors, "\x01\x78\x10");
  EXPECT_EQ(Frames.in(Place - 0x1000, Place).size(), 2u);
  // A part of a function has its description; what is between functions has none.
  EXPECT_EQ(Frames.in(Place - 0x0f01 + 0x20, Place).size(), 1u);
  EXPECT_TRUE(Frames.in(Place - 0x1000 + 0x2d, Place - 0x0f00).empty());
}

// The file has the code at its beginning: addresses are counted from there.
TEST(Frames, AFileSaysItOfItselfAndOfWhereTheFunctionIs) {
  Section S = withExceptions();
  FrameSection Frames(Place, S.Bytes);
  uint64_t Start = Place - 0x1000, Size = 0x2d, Mapped = 0x100000;
  auto Of = Frames.in(Start, Start + Size);
  UnwindingData Data(Start, Size, Of, Mapped);
  ASSERT_GT(Data.bytes().size(), Data.headerSize());
  StringRef Said = Data.bytes().drop_back(Data.headerSize());
  StringRef Header = Data.bytes().take_back(Data.headerSize());
  EXPECT_EQ(Said.size() % 8, 0u);
  EXPECT_EQ(Data.mappedSize(), 0x30 + Data.bytes().size());

  FrameSection Again(0x30, Said);
  for (uint64_t Code : {uint64_t(0), Mapped}) {
    auto Found = Again.in(Code, Code + Size);
    ASSERT_EQ(Found.size(), 1u);
    EXPECT_EQ(Found[0].Start, Code);
    EXPECT_EQ(Found[0].End, Code + Size);
    EXPECT_TRUE(Found[0].Instructions.consume_front("\x44\x0e\x10"));
    EXPECT_EQ(Found[0].Instructions.find_first_not_of('\0'), StringRef::npos);
    EXPECT_EQ(Found[0].Of->Instructions.take_front(3), "\x0c\x07\x08");
    EXPECT_EQ(Found[0].Of->Factors, "\x01\x78\x10");
  }

  uint64_t HeaderPlace = 0x30 + Said.size();
  ASSERT_EQ(Header.size(), 12 + 2 * 8u);
  EXPECT_EQ(Header.take_front(4), "\x01\x1b\x03\x3b");
  EXPECT_EQ(HeaderPlace + 4 + at<int32_t>(Header, 4), 0x30u);
  EXPECT_EQ(at<uint32_t>(Header, 8), 2u);
  for (int I : {0, 1}) {
    uint64_t Code = HeaderPlace + at<int32_t>(Header, 12 + 8 * I);
    uint64_t Description = HeaderPlace + at<int32_t>(Header, 16 + 8 * I);
    EXPECT_EQ(Code, I * Mapped);
    // Behind its length and the way to what is common there is the code, relative to itself.
    EXPECT_EQ(Description + 8 + at<uint64_t>(Said, Description + 8 - 0x30), Code);
  }

  UnwindingData Once(Start, Size, Of, 0);
  EXPECT_EQ(Once.headerSize(), 12 + 8u);
  EXPECT_EQ(at<uint32_t>(Once.bytes().take_back(Once.headerSize()), 8), 1u);
}

TEST(Frames, ASignalFrameStaysOne) {
  Section S;
  S.describe(S.common("zRS", "\x1b"), Place - 0x1000, 0x20, "", "");
  FrameSection Frames(Place, S.Bytes);
  auto Of = Frames.in(Place - 0x1000, Place);
  UnwindingData Data(Place - 0x1000, 0x20, Of, 0);
  FrameSection Again(0x20, Data.bytes().drop_back(Data.headerSize()));
  ASSERT_EQ(Again.in(0, 1).size(), 1u);
  EXPECT_EQ(Again.in(0, 1)[0].Of->Letters, "S");
}

TEST(Frames, WhatIsNoRecordEndsASection) {
  Section S = withExceptions();
  size_t Right = S.Bytes.size();
  S.record(12345, "refers to nothing");
  S.describe(0, Place - 0x0800, 0x20, "LSDA", "");
  FrameSection Frames(Place, S.Bytes);
  EXPECT_EQ(Frames.in(0, Place).size(), 2u);
  // A word that no compiler writes; a length of 64 bits; the end.
  for (uint32_t Length : {uint32_t(Right), UINT32_MAX, uint32_t(0)}) {
    std::string Bytes = S.Bytes.substr(0, Right);
    put<uint32_t>(Bytes, Length);
    EXPECT_EQ(FrameSection(Place, Bytes).in(0, Place).size(), 2u);
  }
}

TEST(Frames, WhatIsCommonMustBeKnown) {
  for (auto [Letters, Data, Found] : {std::tuple("zR", "\x1b", 1u),
                                      {"zX", "\x1b", 0u},
                                      {"R", "\x1b", 0u},
                                      {"zR", "\x1b more", 0u},
                                      {"zR", "\x9b", 0u}}) {
    Section S;
    S.describe(S.common(Letters, Data), Place - 0x1000, 0x20, "", "");
    EXPECT_EQ(FrameSection(Place, S.Bytes).in(0, Place).size(), Found) << Letters;
  }
}

TEST(Frames, NoBytesAreReadOutsideWhateverIsThere) {
  std::string Right = withExceptions().Bytes;
  size_t OfOne = withExceptions(1).Bytes.size();
  for (size_t Size = 0; Size <= Right.size(); ++Size) {
    // In an allocation of its size, so that a sanitizer knows its end.
    std::vector<char> Part(Right.begin(), Right.begin() + Size);
    FrameSection Frames(Place, StringRef(Part.data(), Size));
    EXPECT_EQ(Frames.in(0, Place).size(), size_t(Size == Right.size()) + (Size >= OfOne)) << Size;
  }
  for (size_t At = 0; At != Right.size(); ++At)
    for (int Value : {0, 1, 0x7f, 0x80, 0xff}) {
      std::vector<char> Wrong(Right.begin(), Right.end());
      Wrong[At] = static_cast<char>(Value);
      FrameSection Frames(Place, StringRef(Wrong.data(), Wrong.size()));
      auto Of = Frames.in(0, UINT64_MAX);
      EXPECT_LE(Of.size(), 2u);
      UnwindingData(Place, 8, Of, 0);
    }
}

TEST(Frames, AddressesForThemAreBelowTheFunctionAndForNothingElse) {
  uint64_t Page = sysconf(_SC_PAGESIZE), Below = uint64_t(4) << 30;
  // With room below: sanitizers keep most addresses for themselves.
  void *Room =
      mmap(nullptr, Below + Page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(Room, MAP_FAILED);
  ASSERT_EQ(munmap(Room, Below), 0);
  uint64_t Function = reinterpret_cast<uintptr_t>(Room) + Below;
  UnwindingAddresses Addresses;
  uint64_t First = Addresses.take(Function, 1000), Second = Addresses.take(Function, 8);
  uint64_t Large = Addresses.take(Function, 100 << 20);
  ASSERT_TRUE(First && Second && Large);
  EXPECT_GE(Second, First + 1000);
  unsigned char Resident;
  for (auto [Start, Size] : {std::pair(First, 1000), {Second, 8}, {Large, 100 << 20}}) {
    EXPECT_EQ(Start % 16, 0u);
    EXPECT_LE(Start + Size, Function);
    EXPECT_LT(Function - Start, uint64_t(1) << 31);
    // Of what is not mapped this says so.
    for (uint64_t At : {Start, Start + Size - 1})
      EXPECT_EQ(mincore(reinterpret_cast<void *>(At / Page * Page), Page, &Resident), 0);
  }
  EXPECT_EQ(munmap(reinterpret_cast<void *>(Function), Page), 0);
  // There is nothing below.
  EXPECT_EQ(UnwindingAddresses().take(Page, 8), 0u);
}

} // namespace
