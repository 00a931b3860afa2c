// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Several executors that are linked for once, by their EPCs. Hosts include <jitmem/orc.hpp> and use
// MemoryManager::CreateGroup.

#ifndef JITMEM_ORC_GROUP_HPP
#define JITMEM_ORC_GROUP_HPP

#include "orc_compat.hpp"
#include "orc_error.hpp"
#include "orc_transport.hpp"

#include <llvm/ADT/ArrayRef.h>
#include <llvm/ADT/StringRef.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace jitmem::orc::detail {

struct FreeMapper {
  void operator()(jitmem_mapper *M) const { jitmem_mapper_free(M); }
};

/// The mapper of a group, and the connections to its executors.
class Group {
public:
  using EPCRef = llvm::orc::ExecutorProcessControl &;
  using ObserverFunction = std::function<void(const jitmem_group_event &)>;

  /// How jitmem's service is found in each executor.
  struct Choice {
    bool Load = true;
    std::string Library;
    jitmem_limits Limits = {};
  };

  static llvm::Expected<std::unique_ptr<Group>>
  create(llvm::ArrayRef<llvm::orc::ExecutorProcessControl *> EPCs, Choice C,
         const ObserverFunction &Observer) {
    std::unique_ptr<Group> G(new Group(std::move(C)));
    std::vector<jitmem_new_executor> Executors;
    for (auto *EPC : EPCs) {
      auto S = G->find(*EPC);
      if (!S)
        return S.takeError();
      Executors.push_back(described(*S, nullptr));
      G->Links.push_back({0, std::move(S->Link)});
    }
    jitmem_group_observer Told = {};
    if (Observer) {
      Told.struct_size = sizeof(Told);
      Told.fn = [](void *Ctx, const jitmem_group_event *Event) {
        (*static_cast<const ObserverFunction *>(Ctx))(*Event);
      };
      Told.ctx = new ObserverFunction(Observer);
      Told.destroy = [](void *Ctx) { delete static_cast<ObserverFunction *>(Ctx); };
    }
    OwnedError E;
    jitmem_mapper *Made = nullptr;
    if (jitmem_mapper_group(Executors.data(), Executors.size(), Observer ? &Told : nullptr, &Made,
                            E.out()) != JITMEM_OK)
      return E.take();
    G->Mapper.reset(Made);
    for (size_t I = 0; I != G->Links.size(); ++I)
      G->Links[I].Number = I + 1;
    return G;
  }

  /// Where it could not be created, the library may still have calls under way.
  ~Group() { cut(); }

  llvm::Expected<uint64_t> add(EPCRef EPC, const std::string &Name) {
    auto S = find(EPC);
    if (!S)
      return S.takeError();
    auto Executor = described(*S, Name.empty() ? nullptr : Name.c_str());
    uint64_t Number = 0;
    OwnedError E;
    if (jitmem_mapper_add_executor(Mapper.get(), &Executor, &Number, E.out()) != JITMEM_OK) {
      S->Link.EPC->cut();
      return E.take();
    }
    {
      std::lock_guard<std::mutex> Lock(M);
      auto Early = std::find(Removed.begin(), Removed.end(), Number);
      if (Early == Removed.end()) {
        Links.push_back({Number, std::move(S->Link)});
        return Number;
      }
      Removed.erase(Early);
    }
    S->Link.EPC->cut();
    return Number;
  }

  llvm::Error remove(uint64_t Number) {
    OwnedError E;
    if (jitmem_mapper_remove_executor(Mapper.get(), Number, E.out()) != JITMEM_OK)
      return E.take();
    if (auto Gone = take(Number))
      Gone->EPC->cut();
    return llvm::Error::success();
  }

  /// No EPC is touched any more.
  void cut() {
    for (auto &L : Links)
      L.Link.EPC->cut();
  }

  const jitmem_mapper &mapper() const { return *Mapper; }

private:
  /// The link to one executor.
  struct NumberedLink {
    uint64_t Number = 0;
    ExecutorLink Link;
  };

  explicit Group(Choice C) : Chosen(std::move(C)) {}

  /// The link to an executor that is removed, if add() has noted it.
  std::optional<ExecutorLink> take(uint64_t Number) {
    std::lock_guard<std::mutex> Lock(M);
    auto Is = [Number](const NumberedLink &L) { return L.Number == Number; };
    auto Found = std::find_if(Links.begin(), Links.end(), Is);
    if (Found == Links.end()) {
      Removed.push_back(Number);
      return std::nullopt;
    }
    std::optional<ExecutorLink> Gone(std::move(Found->Link));
    Links.erase(Found);
    return Gone;
  }

  llvm::Expected<Service> find(EPCRef EPC) const {
    return Service::find(EPC, Chosen.Load, Chosen.Library, Chosen.Limits);
  }

  static jitmem_new_executor described(const Service &S, const char *Name) {
    jitmem_new_executor Executor = {};
    Executor.transport = S.Link.Handle.get();
    Executor.name = Name;
    Executor.service = S.Open;
    Executor.instance = S.Instance;
    return Executor;
  }

  Choice Chosen;
  /// Of Links; not held while the library is called, where callbacks of the host run, nor while a
  /// link is cut, which waits for them.
  std::mutex M;
  std::vector<NumberedLink> Links;
  /// Executors that the observer of the group has removed before add() has noted their links.
  std::vector<uint64_t> Removed;
  std::unique_ptr<jitmem_mapper, FreeMapper> Mapper;
};

} // namespace jitmem::orc::detail

#endif // JITMEM_ORC_GROUP_HPP
