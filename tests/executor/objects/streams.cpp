// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Streams, strings, containers and a locale: they need their constructors to run.
#include <algorithm>
#include <iostream>
#include <map>
#include <sstream>
#include <string>

int main() {
  std::map<std::string, int> count;
  std::string word;
  while (std::cin >> word)
    count[word]++;
  std::ostringstream text;
  for (const auto &[name, times] : count)
    text << name << '=' << times << ' ';
  std::cerr << count.size() << " words\n";
  std::cout << text.str() << std::endl;
  return 42;
}
