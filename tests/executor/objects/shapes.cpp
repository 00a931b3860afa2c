// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Classes, templates and inline variables that two objects both have: main's object.
#include "shapes.h"
#include <cstdio>
#include <typeinfo>

int main() {
  std::unique_ptr<Shape> square = make("square", 3), circle = make("circle", 2);
  bool cast = dynamic_cast<Square *>(square.get()) && !dynamic_cast<Square *>(circle.get());
  bool same = typeid(*square) == typeid(Square) && made_here() == &made;
  std::printf("%d %d %d %d\n", square->area(), circle->area(), cast, same);
  return square->area() + circle->area() + static_cast<int>(biggest<long>(20, made));
}
