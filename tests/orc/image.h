// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Sessions whose objects become images, and into which images are loaded.

#ifndef JITMEM_TESTS_ORC_IMAGE_H
#define JITMEM_TESTS_ORC_IMAGE_H

#include "compat.h"
#include "compat_orc.h"

#include <gtest/gtest.h>
#include <jitmem/orc_image.hpp>
#include <jitmem/orc_layer.hpp>

#include <llvm/Support/FileSystem.h>
#include <llvm/Support/MemoryBuffer.h>

#include <cstdio>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <unistd.h>
#include <utility>

using namespace llvm;
using namespace llvm::orc;
using jitmem::orc::ImageKey;
using jitmem::orc::ImageLoader;
using jitmem::orc::ImagePlugin;
using jitmem::orc::ImageRecorder;
using jitmem::orc::MemoryManager;

inline void must(Error Err) {
  if (Err)
    throw std::runtime_error(toString(std::move(Err)));
}
template <typename T> T must(Expected<T> Value) {
  must(Value.takeError());
  return std::move(*Value);
}

template <typename T> T &must(Expected<T &> Value) {
  must(Value.takeError());
  return *Value;
}

inline std::string messageOf(Error Err) { return toString(std::move(Err)); }

inline const ImageKey Key = {{"options", "of this test"}};
inline const char *const Stored[] = {"throws.cpp", "passes.cpp", "catches.cpp", "stored.cpp"};

inline int HostNumber = 100;

// An LLJIT whose objects are recorded, and into which images are loaded.
class Session {
public:
  explicit Session(std::shared_ptr<ObjectLinkingLayer::Plugin> Other = nullptr)
      : Recorder(must(ImageRecorder::Create())), MM(must(MemoryManager::CreateInProcess())) {
    LLJITBuilder Builder;
    compat::setLinkingLayer(
        Builder, [this, Other](ExecutionSession &ES) -> Expected<std::unique_ptr<ObjectLayer>> {
          auto Layer = jitmem::orc::createObjectLayer(ES, *MM);
          if (!Layer)
            return Layer.takeError();
          if (Other)
            (*Layer)->addPlugin(Other);
          (*Layer)->addPlugin(std::make_unique<ImagePlugin>(Recorder));
          return std::move(*Layer);
        });
    J = must(Builder.create());
    Loader = std::make_unique<ImageLoader>(J->getExecutionSession(), *MM);
    must(J->getMainJITDylib().define(
        absoluteSymbols({{J->mangleAndIntern("hostNumber"),
                          {ExecutorAddr::fromPtr(&HostNumber), JITSymbolFlags::Exported}}})));
  }
  ~Session() {
    // What is loaded goes with the session, and the loader must hear of it.
    cantFail(J->getExecutionSession().endSession());
    Loader.reset();
    J.reset();
    EXPECT_EQ(MM->stats().live, 0u);
  }

  JITDylib &main() { return J->getMainJITDylib(); }
  void add(ResourceTrackerSP RT, const std::string &Source) {
    auto Buffer = MemoryBuffer::getFile(std::string(JIT_OBJECT_DIR) + "/" + Source + ".o");
    must(errorCodeToError(Buffer.getError()));
    must(J->addObjectFile(std::move(RT), std::move(*Buffer)));
  }
  void add(const std::string &Source) { add(main().getDefaultResourceTracker(), Source); }
  uint64_t find(const std::string &Name) { return must(J->lookup(Name)).getValue(); }
  int call(const std::string &Name, int Value) {
    return must(J->lookup(Name)).toPtr<int (*)(int)>()(Value);
  }

  std::shared_ptr<ImageRecorder> Recorder;
  std::unique_ptr<MemoryManager> MM;
  std::unique_ptr<LLJIT> J;
  std::unique_ptr<ImageLoader> Loader;
};

// A file of one test.
class Image : public ::testing::Test {
protected:
  Image() : Path(::testing::TempDir() + "jitmem-orc-image-" + std::to_string(getpid())) {}
  ~Image() override { std::remove(Path.c_str()); }

  // Links objects, has them run, and stores them.
  void store() {
    Session S;
    for (const char *Source : Stored)
      S.add(Source);
    EXPECT_EQ(S.call("useEverything", 5), 1137);
    Where.insert(S.find("useEverything"));
    must(S.Recorder->store(Path, Key));
  }

  std::string Path;
  std::set<uint64_t> Where;
};

#endif // JITMEM_TESTS_ORC_IMAGE_H
