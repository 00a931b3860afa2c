// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "layout.hpp"

#include "text.hpp"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/raw_ostream.h"

#include <algorithm>
#include <vector>

using namespace llvm;

namespace demo {
namespace {

struct Extent {
  uint64_t Start = 0;
  uint64_t Size = 0;
  uint32_t Protection = 0;

  uint64_t end() const { return Start + Size; }
};

struct Chunk : Extent {
  std::vector<Extent> Ranges;

  uint64_t used() const {
    uint64_t Sum = 0;
    for (const Extent &Range : Ranges)
      Sum += Range.Size;
    return Sum;
  }
};

struct Window : Extent {
  std::vector<Chunk> Chunks;
};

void visit(void *Context, const jitmem_layout_item *Item) {
  auto &Windows = *static_cast<std::vector<Window> *>(Context);
  Extent E{Item->address, Item->size, Item->protection};
  switch (Item->kind) {
  case JITMEM_LAYOUT_WINDOW:
    Windows.push_back({E, {}});
    break;
  case JITMEM_LAYOUT_CHUNK:
    Windows.back().Chunks.push_back({E, {}});
    break;
  case JITMEM_LAYOUT_RANGE:
    Windows.back().Chunks.back().Ranges.push_back(E);
    break;
  }
}

Expected<std::vector<Window>> collect(const jitmem_manager *Manager) {
  std::vector<Window> Windows;
  jitmem_error *Failure = nullptr;
  if (jitmem_manager_layout(Manager, visit, &Windows, &Failure) == JITMEM_OK)
    return Windows;
  std::string Message = jitmem_error_message(Failure);
  jitmem_error_free(Failure);
  return createStringError(Message);
}

struct Style {
  uint32_t Protection;
  const char *Class;
  const char *Meaning;
};

constexpr Style Styles[] = {
    {JITMEM_PROT_READ | JITMEM_PROT_EXEC, "code", "code (R-X)"},
    {JITMEM_PROT_READ, "const", "constants, unwind tables (R--)"},
    {JITMEM_PROT_READ | JITMEM_PROT_WRITE, "data", "data (RW-)"},
    {0, "other", "another protection"},
};

const Style &styleOf(uint32_t Protection) {
  const Style *Last = std::end(Styles) - 1;
  return *std::find_if(std::begin(Styles), Last,
                       [=](const Style &S) { return S.Protection == Protection; });
}

constexpr const char *StyleSheet = R"(<style>
  text { font: 13px system-ui, "DejaVu Sans", sans-serif; fill: #3b4450 }
  .title { font-size: 22px; font-weight: 600; fill: #1d242c }
  .mono { font: 12px ui-monospace, "DejaVu Sans Mono", monospace; fill: #66707c }
  .quiet { font-size: 12px; fill: #66707c }
  .middle { text-anchor: middle }
  .end { text-anchor: end }
  .window { fill: #fbfcfd; stroke: #1d242c; stroke-width: 1.5 }
  .gap { fill: #ffffff }
  .tear { fill: #ffffff; stroke: #1d242c; stroke-width: 1.5; stroke-linejoin: round }
  .tick { stroke: #aab3bd }
  .free { fill: #e3e7eb }
  .outline { fill: none; stroke: #1d242c }
  .code { fill: #2f6fb7 } .code.odd { fill: #5b95d6 }
  .const { fill: #3a9461 } .const.odd { fill: #63b886 }
  .data { fill: #d47a1f } .data.odd { fill: #eda352 }
  .other { fill: #b9332b } .other.odd { fill: #d65a50 }
</style>
)";

std::string count(size_t Number, StringRef Noun) {
  return formatv("{0} {1}{2}", Number, Noun, Number == 1 ? "" : "s");
}

// The columns: offsets in the window, chunks, what they are.
constexpr double Width = 1200, Margin = 40, Left = 150, Right = 930, RowHeight = 15, Spacing = 9;

class Drawing {
public:
  Drawing(raw_ostream &OS, uint64_t BytesPerRow) : OS(OS), BytesPerRow(BytesPerRow) {}

  void header(const Twine &Title, ArrayRef<Window> Windows);
  void window(const Window &W);
  double height() const { return Y + Margin; }

private:
  void text(double X, double AtY, const char *Class, const Twine &Text) {
    OS << formatv("<text x=\"{0:f1}\" y=\"{1:f1}\" class=\"{2}\">{3}</text>\n", X, AtY, Class,
                  Text.str());
  }
  void rect(double X, double AtY, double W, double H, const Twine &Class,
            const Twine &Tooltip = "") {
    OS << formatv("<rect x=\"{0:f2}\" y=\"{1:f1}\" width=\"{2:f2}\" height=\"{3:f1}\" "
                  "class=\"{4}\"><title>{5}</title></rect>\n",
                  X, AtY, W, H, Class.str(), Tooltip.str());
  }

  void gap(uint64_t Size);
  void chunk(const Window &W, const Chunk &C);
  void scale();
  double x(uint64_t Offset) const { return Left + (Right - Left) * Offset / BytesPerRow; }

  raw_ostream &OS;
  uint64_t BytesPerRow;
  double Y = Margin;
};

void Drawing::header(const Twine &Title, ArrayRef<Window> Windows) {
  struct Sum {
    size_t Chunks = 0, Ranges = 0;
    uint64_t Used = 0;
  };
  Sum Sums[std::size(Styles)], All;
  uint64_t Committed = 0;
  for (const Window &W : Windows)
    for (const Chunk &C : W.Chunks) {
      Committed += C.Size;
      for (Sum *S : {&Sums[&styleOf(C.Protection) - Styles], &All}) {
        ++S->Chunks;
        S->Ranges += C.Ranges.size();
        S->Used += C.used();
      }
    }

  Y += 14;
  text(Margin, Y, "title", Title);
  Y += 26;
  text(Margin, Y, "",
       "Pieces of many object files share a chunk: " + bytes(All.Used) + " in " +
           count(All.Ranges, "piece") + ", in only " + count(All.Chunks, "chunk") +
           ". A chunk is one mapping in the process that runs the code.");
  Y += 20;
  text(Margin, Y, "",
       "Each coloured block is a piece of one object file; light and dark tell neighbours apart. "
       "Addresses grow to the right, then upwards: a row is " +
           bytes(BytesPerRow) + ".");
  Y += 34;
  double X = Margin;
  auto Entry = [&](const Twine &Class, const Twine &Name, const Twine &Figures) {
    rect(X, Y - 12, 14, 28, Class);
    rect(X + 14, Y - 12, 14, 28, Class + " odd");
    text(X + 38, Y, "", Name);
    text(X + 38, Y + 16, "quiet", Figures);
    X += 285;
  };
  for (auto [S, Look] : zip(Sums, Styles))
    if (S.Chunks)
      Entry(Look.Class, Look.Meaning,
            bytes(S.Used) + " in " + count(S.Ranges, "piece") + ", " + count(S.Chunks, "chunk"));
  Entry("free", "free, for what is linked next", bytes(Committed - All.Used));
  Y += 46;
}

// Address space that no chunk occupies, however much it is.
void Drawing::gap(uint64_t Size) {
  constexpr double Height = 44, Step = 16, Depth = 3;
  auto Tear = [&](double AtY) {
    std::string Path;
    bool Up = false;
    for (double X = Margin; X <= Width - Margin; X += Step, Up = !Up)
      Path +=
          formatv("{0} {1:f1} {2:f1} ", Path.empty() ? "M" : "L", X, AtY + (Up ? -Depth : Depth));
    OS << "<path d=\"" << Path << "\" class=\"tear\"/>\n";
  };
  rect(Margin - 1, Y, Width - 2 * Margin + 2, Height, "gap");
  Tear(Y);
  Tear(Y + Height);
  text((Left + Right) / 2, Y + Height / 2 + 5, "middle",
       bytes(Size) + " of address space with no memory behind it");
  Y += Height + Spacing;
}

// A chunk is a block of rows. The part of it that is not handed out shows the background.
void Drawing::chunk(const Window &W, const Chunk &C) {
  uint64_t Rows = (C.Size + BytesPerRow - 1) / BytesPerRow;
  double Bottom = Y + Rows * RowHeight;
  auto Pieces = [&](const Extent &E, const Twine &Class, const Twine &Tooltip) {
    for (uint64_t At = E.Start - C.Start, End = At + E.Size; At < End;) {
      uint64_t Row = At / BytesPerRow, RowEnd = std::min(End, (Row + 1) * BytesPerRow);
      double From = x(At % BytesPerRow), To = x(RowEnd - Row * BytesPerRow);
      rect(From, Bottom - (Row + 1) * RowHeight, To - From, RowHeight, Class, Tooltip);
      At = RowEnd;
    }
  };
  Pieces(C, "free", "");
  const Style &Look = styleOf(C.Protection);
  for (auto [Index, Range] : enumerate(C.Ranges))
    Pieces(Range, Twine(Look.Class) + (Index % 2 ? " odd" : ""),
           hex(Range.Start) + ", " + Twine(Range.Size) + " bytes");

  // The top row may be a short one.
  double FullTop = Bottom - C.Size / BytesPerRow * RowHeight,
         Widest = x(std::min(C.Size, BytesPerRow));
  double TopEnd = x((C.Size - 1) % BytesPerRow + 1);
  OS << formatv("<polygon points=\"{0:f1},{1:f1} {2:f1},{1:f1} {2:f1},{3:f1} {4:f1},{3:f1} "
                "{4:f1},{5:f1} {0:f1},{5:f1}\" class=\"outline\"/>\n",
                Left, Bottom, Widest, FullTop, TopEnd, Y);
  text(Left - 10, Bottom - 3, "quiet end", "at " + bytes(C.Start - W.Start));
  text(Right + 14, (Y + Bottom) / 2 + 4.5, "",
       bytes(C.Size) + ", " + Twine(C.used() * 100 / C.Size) + "% used, " +
           count(C.Ranges.size(), "piece"));
  Y = Bottom + Spacing;
}

// How many bytes a row's parts hold.
void Drawing::scale() {
  constexpr unsigned Parts = 4;
  for (unsigned I = 0; I <= Parts; ++I) {
    double X = x(BytesPerRow * I / Parts);
    OS << formatv(
        "<line x1=\"{0:f1}\" y1=\"{1:f1}\" x2=\"{0:f1}\" y2=\"{2:f1}\" class=\"tick\"/>\n", X, Y,
        Y + 6);
    text(X, Y + 20, "quiet middle", I ? bytes(BytesPerRow * I / Parts) : "0");
  }
  Y += 20;
}

void Drawing::window(const Window &W) {
  // The frame lies below its content, but only the content tells how high it is.
  std::string Content;
  raw_string_ostream Inner(Content);
  Drawing D(Inner, BytesPerRow);
  D.Y = Y + 40;
  uint64_t Above = W.end();
  for (const Chunk &C : reverse(W.Chunks)) {
    if (Above - C.end() >= BytesPerRow)
      D.gap(Above - C.end());
    D.chunk(W, C);
    Above = C.Start;
  }
  if (Above - W.Start >= BytesPerRow)
    D.gap(Above - W.Start);
  D.scale();
  D.Y += 14;

  rect(Margin, Y, Width - 2 * Margin, D.Y - Y, "window");
  text(Margin + 14, Y + 24, "",
       "A window: " + bytes(W.Size) +
           " of address space, in which everything is within 32-bit "
           "reach of everything else");
  text(Width - Margin - 14, Y + 24, "mono end", hex(W.Start) + " to " + hex(W.end()));
  OS << Content;
  Y = D.Y + 24;
}

} // namespace

Error drawLayout(const jitmem_manager *Manager, StringRef Path, const Twine &Title) {
  auto Windows = collect(Manager);
  if (!Windows)
    return Windows.takeError();

  // As fine as fits in about this many rows. The smallest chunks fill one.
  constexpr uint64_t MostRows = 56;
  uint64_t Committed = 0, BytesPerRow = 64 << 10;
  for (const Window &W : *Windows)
    for (const Chunk &C : W.Chunks)
      Committed += C.Size;
  while (Committed / BytesPerRow > MostRows)
    BytesPerRow *= 2;

  std::string Body;
  raw_string_ostream BodyStream(Body);
  Drawing D(BodyStream, BytesPerRow);
  D.header(Title, *Windows);
  for (const Window &W : *Windows)
    D.window(W);

  auto Unwritten = [Path](std::error_code Code) {
    return createStringError("cannot write the picture " + Path + ": " + Code.message());
  };
  std::error_code Failed;
  raw_fd_ostream File(Path, Failed);
  if (Failed)
    return Unwritten(Failed);
  File << formatv("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:f0}\" height=\"{1:f0}\" "
                  "viewBox=\"0 0 {0:f0} {1:f0}\">\n",
                  Width, D.height())
       << StyleSheet << "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
       << Body << "</svg>\n";
  File.close();
  if (File.has_error()) {
    std::error_code Code = File.error();
    File.clear_error();
    return Unwritten(Code);
  }
  return Error::success();
}

} // namespace demo
