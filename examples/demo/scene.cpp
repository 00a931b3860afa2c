// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "scene.hpp"

#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/raw_ostream.h"

using namespace llvm;

namespace demo {

static constexpr unsigned SceneCount = 3;

Scene::Scene(unsigned Number, const Twine &Title) {
  outs() << formatv("\nScene {0} of {1}: ", Number, SceneCount) << Title << '\n';
  outs().flush();
}

void Scene::progress(const Twine &Doing) {
  if (!outs().is_displayed() || !errs().is_displayed())
    return;
  clearProgress();
  errs() << "  ... " << Doing;
  ShowsProgress = true;
}

void Scene::clearProgress() {
  // To the beginning of the line, then erase it.
  if (std::exchange(ShowsProgress, false))
    errs() << "\r\033[K";
}

void Scene::result(StringRef Subject, const Twine &Text) {
  note(formatv("{0,-17} ", Subject).str() + Text);
}

void Scene::note(const Twine &Text) {
  clearProgress();
  outs() << "  " << Text << '\n';
  outs().flush();
}

void Scene::end() { note(formatv("It took {0:f1} s.", millisecondsSince(Start) / 1000).str()); }

} // namespace demo
