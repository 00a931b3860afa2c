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

#include <functional>
#include <memory>
#include <mutex>
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
      auto Found = G->find(*EPC);
      if (!Found)
        return Found.takeError();
      Executors.push_back(described(G->Links.back(), *Found, nullptr));
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

  llvm::Expected<uint64_t> add(EPCRef EPC, const std::string &Name) {
    std::lock_guard<std::mutex> Lock(M);
    auto Found = find(EPC);
    if (!Found)
      return Found.takeError();
    auto Executor = described(Links.back(), *Found, Name.empty() ? nullptr : Name.c_str());
    OwnedError E;
    if (jitmem_mapper_add_executor(Mapper.get(), &Executor, &Links.back().Number, E.out()) !=
        JITMEM_OK) {
      Links.back().Link.EPC->cut();
      Links.pop_back();
      return E.take();
    }
    return Links.back().Number;
  }

  llvm::Error remove(uint64_t Number) {
    std::lock_guard<std::mutex> Lock(M);
    OwnedError E;
    if (jitmem_mapper_remove_executor(Mapper.get(), Number, E.out()) != JITMEM_OK)
      return E.take();
    for (auto I = Links.begin(); I != Links.end(); ++I)
      if (I->Number == Number) {
        I->Link.EPC->cut();
        Links.erase(I);
        break;
      }
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

  /// Finds the service of an executor, whose link comes last then.
  llvm::Expected<std::pair<uint64_t, uint64_t>> find(EPCRef EPC) {
    auto S = Service::find(EPC, Chosen.Load, Chosen.Library, Chosen.Limits);
    if (!S)
      return S.takeError();
    Links.push_back({0, std::move(S->Link)});
    return std::make_pair(S->Open, S->Instance);
  }

  static jitmem_new_executor described(const NumberedLink &L, std::pair<uint64_t, uint64_t> Service,
                                       const char *Name) {
    jitmem_new_executor Executor = {};
    Executor.transport = L.Link.Handle.get();
    Executor.name = Name;
    Executor.service = Service.first;
    Executor.instance = Service.second;
    return Executor;
  }

  Choice Chosen;
  std::mutex M;
  std::vector<NumberedLink> Links;
  std::unique_ptr<jitmem_mapper, FreeMapper> Mapper;
};

} // namespace jitmem::orc::detail

#endif // JITMEM_ORC_GROUP_HPP
