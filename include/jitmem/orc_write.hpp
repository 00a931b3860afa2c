// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Writing what is finalized, while linked code runs.

#ifndef JITMEM_ORC_WRITE_HPP
#define JITMEM_ORC_WRITE_HPP

#include "orc.hpp"

#include <llvm/ExecutionEngine/Orc/Shared/ExecutorAddress.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

namespace jitmem::orc {

/// The right to write code and data of one finalized allocation while linked code may run them:
/// inline caches, the targets of stubs. Ends with end() or when it is destroyed. See
/// jitmem_write_scope in jitmem.h, also for the mappers that refuse it.
///
/// The allocation is not deallocated meanwhile: a deallocation through the MemoryManager is
/// answered when the scope has ended. One thread at a time uses a scope; scopes do not exclude each
/// other.
class WriteScope {
public:
  using FinalizedAlloc = llvm::jitlink::JITLinkMemoryManager::FinalizedAlloc;

  /// Opens an allocation of this manager, which must not be deallocated yet.
  static llvm::Expected<WriteScope> begin(const MemoryManager &MM, const FinalizedAlloc &Alloc) {
    return begin(MM, Alloc.getAddress().getValue());
  }

  /// Opens the finalized allocation of this manager that an executor address lies in, for hosts
  /// that hold addresses of symbols and no FinalizedAlloc. It must not be deallocated yet.
  static llvm::Expected<WriteScope> begin(const MemoryManager &MM, llvm::orc::ExecutorAddr Addr) {
    auto Found = MM.lookup(Addr);
    if (!Found || Found->phase != JITMEM_PHASE_FINALIZED) {
      char Hex[19];
      std::snprintf(Hex, sizeof(Hex), "%#llx", static_cast<unsigned long long>(Addr.getValue()));
      return llvm::make_error<MemoryError>(
          JITMEM_INVALID_ARGUMENT, 0,
          std::string("begin a write scope at ") + Hex +
              ": no finalized allocation of this manager lies there");
    }
    return begin(MM, Found->allocation);
  }

  /// Stores 4, 8 or 16 bytes at once at an executor address that is a multiple of their size:
  /// linked code sees all of the new value or all of the old one, in another process too.
  template <typename ValueT> llvm::Error store(llvm::orc::ExecutorAddr Addr, const ValueT &Value) {
    static_assert(std::is_trivially_copyable_v<ValueT> &&
                      (sizeof(ValueT) == 4 || sizeof(ValueT) == 8 || sizeof(ValueT) == 16),
                  "4, 8 and 16 bytes are stored at once");
    detail::OwnedError E;
    jitmem_write_scope_store(Scope.get(), Addr.getValue(), &Value, sizeof(Value), E.out());
    return E.take();
  }

  /// Where bytes at an executor address are written, until the scope ends.
  llvm::Expected<char *> pointer(llvm::orc::ExecutorAddr Addr, size_t Size) {
    detail::OwnedError E;
    void *Pointer = nullptr;
    if (jitmem_write_scope_pointer(Scope.get(), Addr.getValue(), Size, &Pointer, E.out()) !=
        JITMEM_OK)
      return E.take();
    return static_cast<char *>(Pointer);
  }

  /// Ends the scope: where code was changed, every thread of this process runs the new code from
  /// now on. Nothing but destruction may follow.
  llvm::Error end() {
    detail::OwnedError E;
    jitmem_write_scope_end(Scope.release(), E.out());
    return E.take();
  }

private:
  struct End {
    void operator()(jitmem_write_scope *S) const { jitmem_write_scope_end(S, nullptr); }
  };

  static llvm::Expected<WriteScope> begin(const MemoryManager &MM, uint64_t Allocation) {
    detail::OwnedError E;
    jitmem_write_scope *Scope = nullptr;
    if (jitmem_write_scope_begin(MM.handle(), Allocation, &Scope, E.out()) != JITMEM_OK)
      return E.take();
    return WriteScope(Scope);
  }

  explicit WriteScope(jitmem_write_scope *Scope) : Scope(Scope) {}

  std::unique_ptr<jitmem_write_scope, End> Scope;
};

} // namespace jitmem::orc

#endif // JITMEM_ORC_WRITE_HPP
