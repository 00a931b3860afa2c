// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What an .eh_frame section says of linked functions, and the same said again for a jitdump, from
// which perf makes an ELF file for each function. The format is that of the Linux Standard Base
// Core Specification 5.0, 10.6, as compilers for 64-bit processors write it.

#ifndef JITMEM_ORC_FRAMES_HPP
#define JITMEM_ORC_FRAMES_HPP

#include <llvm/ADT/ArrayRef.h>
#include <llvm/ADT/STLExtras.h>
#include <llvm/ADT/StringRef.h>
#include <llvm/ExecutionEngine/Orc/Shared/ExecutorAddress.h>
#include <llvm/Support/DataExtractor.h>
#include <llvm/Support/Error.h>
#include <llvm/Support/MathExtras.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <sys/mman.h>
#include <utility>
#include <vector>

namespace jitmem::orc::detail {

/// Of a jitdump and of what is in it, which have the processor's byte order.
template <typename T> void put(std::string &To, T Value) {
  To.append(reinterpret_cast<const char *>(&Value), sizeof(Value));
}

/// The frame descriptions of a section that is linked at an address, whose bytes stay.
class FrameSection {
public:
  /// A common information entry (CIE), without what belongs to exceptions.
  struct Common {
    uint8_t Version = 0, Encoding = 0;
    /// Its descriptions have data of their own, which say how large they are.
    bool HasData = false;
    /// Alignments and the return address's register, as they are written.
    llvm::StringRef Factors;
    /// Those of signal frames and of signed return addresses, which have no data.
    std::string Letters;
    llvm::StringRef Instructions;
  };
  /// A frame description entry (FDE).
  struct Description {
    uint64_t Start, End;
    const Common *Of;
    llvm::StringRef Instructions;
  };

  /// Has what is before a record that is none, or that no compiler writes.
  FrameSection(uint64_t Address, llvm::StringRef Bytes) : Address(Address), Data(Bytes, true, 8) {
    llvm::DataExtractor::Cursor At(0);
    while (At && At.tell() != Bytes.size()) {
      uint64_t Record = At.tell(), Length = Data.getU32(At);
      // The end; lengths of 64 bits are known to no unwinder.
      if (!At || Length == 0 || Length == UINT32_MAX || Length > Bytes.size() - At.tell())
        break;
      uint64_t End = At.tell() + Length;
      if (!read(Record, End))
        break;
      At.seek(End);
    }
    llvm::consumeError(At.takeError());
    llvm::sort(Descriptions,
               [](const Description &A, const Description &B) { return A.Start < B.Start; });
  }
  FrameSection(const FrameSection &) = delete;
  FrameSection &operator=(const FrameSection &) = delete;

  /// Those that have code of a function, by their first addresses.
  std::vector<Description> in(uint64_t Start, uint64_t End) const {
    std::vector<Description> Found;
    auto It =
        llvm::partition_point(Descriptions, [=](const Description &D) { return D.End <= Start; });
    for (; It != Descriptions.end() && It->Start < End; ++It)
      Found.push_back(*It);
    return Found;
  }

private:
  using Cursor = llvm::DataExtractor::Cursor;

  /// Adds a record; false where it is none.
  bool read(uint64_t Record, uint64_t End) {
    Cursor At(Record + 4);
    uint64_t Place = At.tell(), Back = Data.getU32(At);
    bool Known =
        At && (Back == 0 ? readCommon(Record, At, End) : readDescription(Place - Back, At, End));
    // Where reading has failed, and where it went beyond the record.
    bool Inside = bool(At) && At.tell() <= End;
    llvm::consumeError(At.takeError());
    return Known && Inside;
  }

  bool readCommon(uint64_t Record, Cursor &At, uint64_t End) {
    Common C;
    C.Version = Data.getU8(At);
    llvm::StringRef Augmentation = Data.getCStrRef(At);
    uint64_t Factors = At.tell();
    Data.getULEB128(At);
    Data.getSLEB128(At);
    C.Version == 1 ? Data.getU8(At) : Data.getULEB128(At);
    if (!At || (C.Version != 1 && C.Version != 3) || At.tell() > End)
      return false;
    C.Factors = Data.getData().slice(Factors, At.tell());
    if (!Augmentation.empty()) {
      C.HasData = Augmentation.consume_front("z");
      if (!C.HasData)
        return false;
      uint64_t Size = Data.getULEB128(At), Begin = At.tell();
      for (char Letter : Augmentation) {
        if (Letter == 'R')
          C.Encoding = Data.getU8(At);
        else if (Letter == 'L')
          Data.getU8(At);
        else if (Letter == 'P')
          pointer(At, Data.getU8(At) & 0x0f);
        else if (Letter == 'S' || Letter == 'B' || Letter == 'G')
          C.Letters += Letter;
        else
          return false;
      }
      if (!At || At.tell() - Begin != Size)
        return false;
    }
    if (!At || At.tell() > End)
      return false;
    C.Instructions = Data.getData().slice(At.tell(), End);
    Commons[Record] = std::move(C);
    return true;
  }

  bool readDescription(uint64_t Of, Cursor &At, uint64_t End) {
    auto Found = Commons.find(Of);
    if (Found == Commons.end())
      return false;
    auto Start = pointer(At, Found->second.Encoding);
    // A number of bytes, in a pointer's form.
    auto Size = pointer(At, Found->second.Encoding & 0x07);
    if (!Start || !Size)
      return false;
    if (Found->second.HasData)
      Data.skip(At, Data.getULEB128(At));
    if (!At || At.tell() > End || *Size > UINT64_MAX - *Start)
      return false;
    // Compilers leave such without code where nothing can be reached.
    if (*Size != 0)
      Descriptions.push_back(
          {*Start, *Start + *Size, &Found->second, Data.getData().slice(At.tell(), End)});
    return true;
  }

  /// One of an encoding that compilers use for code.
  std::optional<uint64_t> pointer(Cursor &At, uint8_t Encoding) {
    uint64_t Place = Address + At.tell(), Value;
    switch (Encoding & 0x0f) {
    case 0x02:
      Value = Data.getU16(At);
      break;
    case 0x0a:
      Value = static_cast<uint64_t>(int64_t(static_cast<int16_t>(Data.getU16(At))));
      break;
    case 0x03:
      Value = Data.getU32(At);
      break;
    case 0x0b:
      Value = static_cast<uint64_t>(int64_t(static_cast<int32_t>(Data.getU32(At))));
      break;
    case 0x00:
    case 0x04:
    case 0x0c:
      Value = Data.getU64(At);
      break;
    default:
      return std::nullopt;
    }
    if (!At || (Encoding & 0xf0) > 0x10)
      return std::nullopt;
    return Encoding & 0x10 ? Place + Value : Value;
  }

  uint64_t Address;
  llvm::DataExtractor Data;
  /// By their places in the section.
  std::map<uint64_t, Common> Commons;
  std::vector<Description> Descriptions;
};

/// What perf unwinds a function with: the end of the ELF file that `perf inject` makes of it, which
/// begins with the code. perfs differ in where they read it. Those with libdw read the file. Those
/// with libunwind read what is mapped behind the code, so there the first address is another one
/// than the function's where other functions follow it. Each description is there once for either.
class UnwindingData {
public:
  /// `Mapped` bytes below the function the file's code is taken to be; 0: nowhere.
  UnwindingData(uint64_t Start, uint64_t Size, llvm::ArrayRef<FrameSection::Description> Of,
                uint64_t Mapped)
      : Begin(llvm::alignTo(Size, 8)) {
    for (const auto &D : Of)
      describe(D, D.Start - Start);
    if (Mapped != 0)
      for (const auto &D : Of)
        describe(D, D.Start - Start + Mapped);
    put<uint32_t>(Bytes, 0);
    Bytes.resize(llvm::alignTo(Bytes.size(), 8));
    uint64_t Frames = Bytes.size(), Header = Begin + Frames;
    // Version 1; a pointer of 4 bytes that is relative to itself, a number, and a table whose
    // entries are relative to this header.
    Bytes.append({0x01, 0x1b, 0x03, 0x3b});
    put<uint32_t>(Bytes, -(Frames + 4));
    put<uint32_t>(Bytes, Table.size());
    for (auto [Code, Place] : Table) {
      put<uint32_t>(Bytes, Code - Header);
      put<uint32_t>(Bytes, Place - Header);
    }
    HeaderSize = Bytes.size() - Frames;
  }

  /// Frames, and then their header: in this order perf takes them.
  llvm::StringRef bytes() const { return Bytes; }
  uint64_t headerSize() const { return HeaderSize; }
  /// With the code before it.
  uint64_t mappedSize() const { return Begin + Bytes.size(); }

private:
  /// Where the next byte is; as all places it is counted from the code.
  uint64_t end() const { return Begin + Bytes.size(); }

  /// Adds a record whose length is known when it is finished.
  template <typename ContentT> void record(ContentT &&Content) {
    size_t Start = Bytes.size();
    put<uint32_t>(Bytes, 0);
    Content();
    // To a multiple of 8, by instructions that do nothing.
    Bytes.resize(llvm::alignTo(Bytes.size(), 8));
    uint32_t Length = Bytes.size() - Start - 4;
    Bytes.replace(Start, 4, reinterpret_cast<const char *>(&Length), 4);
  }

  void describe(const FrameSection::Description &D, uint64_t Code) {
    auto Common = Commons.try_emplace(D.Of, end());
    if (Common.second)
      record([&] {
        put<uint32_t>(Bytes, 0);
        put(Bytes, D.Of->Version);
        Bytes += "zR" + D.Of->Letters;
        Bytes += '\0';
        Bytes += D.Of->Factors.str();
        // One byte of data: pointers have 8 bytes and are relative to themselves.
        Bytes.append({0x01, 0x1c});
        Bytes += D.Of->Instructions.str();
      });
    Table.push_back({Code, end()});
    record([&] {
      put<uint32_t>(Bytes, end() - Common.first->second);
      put<uint64_t>(Bytes, Code - end());
      put<uint64_t>(Bytes, D.End - D.Start);
      Bytes += '\0';
      Bytes += D.Instructions.str();
    });
  }

  uint64_t Begin, HeaderSize;
  std::string Bytes;
  std::map<const FrameSection::Common *, uint64_t> Commons;
  /// Code and description.
  std::vector<std::pair<uint64_t, uint64_t>> Table;
};

/// Addresses at which perf can take unwinding data to be, for nothing else is there. They are below
/// the function, since perf counts from the lowest address that a file has, and at most 2 GiB.
class UnwindingAddresses {
public:
  /// Where `Size` bytes can be below an address; 0: nowhere.
  uint64_t take(uint64_t Below, uint64_t Size) {
    Size = llvm::alignTo(Size, 16);
    auto It = std::find_if(Free.rbegin(), Free.rend(),
                           [=](const Range &R) { return R.serves(Below, Size); });
    Range *Found = It != Free.rend() ? &*It : reserve(Below, Size);
    return Found ? std::exchange(Found->Start, Found->Start + Size) : 0;
  }

private:
  static constexpr uint64_t Least = uint64_t(16) << 20, Reach = INT32_MAX;

  struct Range {
    uint64_t Start, End;

    bool serves(uint64_t Below, uint64_t Size) const {
      return End - Start >= Size && End <= Below && Below - Start + Size <= Reach;
    }
  };

  /// Where the kernel would have it, and then from the function downwards.
  Range *reserve(uint64_t Below, uint64_t Size) {
    uint64_t Whole = llvm::alignTo(Size, Least), Hint = 0;
    for (uint64_t Tried = 0; Below < Unserved && Tried + Whole <= Reach; Tried += Whole) {
      void *Place = mmap(llvm::orc::ExecutorAddr(Hint).toPtr<void *>(), Whole, PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (Place == MAP_FAILED)
        break;
      uint64_t Start = reinterpret_cast<uintptr_t>(Place);
      Range Got = {Start, Start + Whole};
      if (Got.serves(Below, Size)) {
        Free.push_back(Got);
        return &Free.back();
      }
      munmap(Place, Whole);
      uint64_t Lower = llvm::alignDown(Below, Least) - Tried;
      Hint = Lower > Whole ? Lower - Whole : 0;
    }
    // What is higher is farther from what is free: it is not tried for each function.
    Unserved = std::min(Unserved, Below);
    return nullptr;
  }

  std::vector<Range> Free;
  uint64_t Unserved = UINT64_MAX;
};

} // namespace jitmem::orc::detail

#endif // JITMEM_ORC_FRAMES_HPP
