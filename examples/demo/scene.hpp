// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef JITMEM_DEMO_SCENE_HPP
#define JITMEM_DEMO_SCENE_HPP

#include "timing.hpp"

#include "llvm/ADT/Twine.h"

namespace demo {

/// One of the demo's scenes on the screen: its title, how far it is, its results, its time.
class Scene {
public:
  Scene(unsigned Number, const llvm::Twine &Title);
  ~Scene() { clearProgress(); }

  /// Says in one line on a terminal what is being done, until the next output. Says nothing
  /// elsewhere.
  void progress(const llvm::Twine &Doing);
  /// These flush, because linked code writes to the same place through a stream of its own.
  void result(llvm::StringRef Subject, const llvm::Twine &Text);
  void note(const llvm::Twine &Text);
  /// Says how long it took.
  void end();

private:
  void clearProgress();

  const Clock::time_point Start = Clock::now();
  bool ShowsProgress = false;
};

} // namespace demo

#endif
