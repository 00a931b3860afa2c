// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What shapes.cpp and makes.cpp share.
#include <memory>
#include <string>

struct Shape {
  virtual ~Shape() = default;
  virtual int area() const = 0;
};

struct Square : Shape {
  int side;
  explicit Square(int side) : side(side) {}
  int area() const override { return side * side; }
};

inline int made;

template <typename T> T biggest(T one, T other) { return one < other ? other : one; }

std::unique_ptr<Shape> make(const std::string &kind, int size);
int *made_here();
