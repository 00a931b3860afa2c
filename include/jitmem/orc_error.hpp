// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// jitmem's errors as LLVM's. Hosts include <jitmem/orc.hpp> or <jitmem/orc_executor.hpp>.

#ifndef JITMEM_ORC_ERROR_HPP
#define JITMEM_ORC_ERROR_HPP

#include "../jitmem.h"

#include <llvm/Support/Error.h>

#include <memory>
#include <string>
#include <system_error>
#include <utility>

namespace jitmem::orc {

/// A jitmem_error as an llvm::Error.
class MemoryError : public llvm::ErrorInfo<MemoryError> {
public:
  static inline char ID = 0;

  MemoryError(jitmem_status Status, int32_t OSCode, std::string Message)
      : Status(Status), OSCode(OSCode), Message(std::move(Message)) {}

  void log(llvm::raw_ostream &OS) const override { OS << Message; }
  std::error_code convertToErrorCode() const override {
    if (OSCode != 0)
      return std::error_code(OSCode, std::generic_category());
    return llvm::inconvertibleErrorCode();
  }

  /// What kind of failure it is.
  jitmem_status status() const { return Status; }
  /// errno of the system call behind it; 0 if there was none.
  int32_t osCode() const { return OSCode; }

private:
  jitmem_status Status;
  int32_t OSCode;
  std::string Message;
};

namespace detail {

/// NULL is success.
inline llvm::Error toError(const jitmem_error *E) {
  if (!E)
    return llvm::Error::success();
  return llvm::make_error<MemoryError>(jitmem_error_status(E), jitmem_error_os_code(E),
                                       jitmem_error_message(E));
}

/// An error that a call has handed over.
class OwnedError {
public:
  OwnedError() = default;
  OwnedError(const OwnedError &) = delete;
  OwnedError &operator=(const OwnedError &) = delete;
  ~OwnedError() { jitmem_error_free(E); }

  jitmem_error **out() { return &E; }
  llvm::Error take() const { return toError(E); }

private:
  jitmem_error *E = nullptr;
};

/// Passes a request on whose callback takes `Ctx` over, and hands the context back to `Refused`
/// together with the error if the request was not accepted: then no callback runs.
template <typename ContextT, typename SubmitT, typename RefusedT>
void submit(std::unique_ptr<ContextT> Ctx, SubmitT Submit, RefusedT Refused) {
  OwnedError E;
  ContextT *Passed = Ctx.release();
  if (Submit(static_cast<void *>(Passed), E.out()) != JITMEM_OK)
    Refused(*std::unique_ptr<ContextT>(Passed), E.take());
}

} // namespace detail
} // namespace jitmem::orc

#endif // JITMEM_ORC_ERROR_HPP
