// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The link to an executor over its EPC, and jitmem's service there. Hosts include <jitmem/orc.hpp>.

#ifndef JITMEM_ORC_TRANSPORT_HPP
#define JITMEM_ORC_TRANSPORT_HPP

#include "orc_compat.hpp"
#include "orc_error.hpp"

#include <llvm/ADT/ArrayRef.h>
#include <llvm/ADT/FunctionExtras.h>
#include <llvm/ADT/StringRef.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <memory>
#include <mutex>
#include <pthread.h>
#include <shared_mutex>
#include <stdlib.h>
#include <string>
#include <sys/socket.h>
#include <unistd.h>
#include <utility>
#include <vector>

namespace jitmem::orc::detail {

struct FreeTransport {
  void operator()(jitmem_transport *T) const { jitmem_transport_free(T); }
};
using Transport = std::unique_ptr<jitmem_transport, FreeTransport>;

/// Whether that is what SimpleRemoteEPC says in place of an answer when it has disconnected.
inline bool saysDisconnected(llvm::StringRef Message) { return Message == "disconnecting"; }

constexpr const char *ExecutorGone =
    "the executor is gone: its EPC has disconnected, or what called it was destroyed";

/// Calls into an EPC's executor, and its dispatcher, until the EPC disconnects or cut() is called.
///
/// Nothing can be asked of an EPC that has disconnected: it would report each further call as an
/// error of the session, and one that owns its memory manager is half destroyed when the manager
/// goes. So the connection notices the end by itself, and the manager cuts it before it goes.
class Connection {
  using EPCRef = llvm::orc::ExecutorProcessControl &;

public:
  explicit Connection(EPCRef EPC) : EPC(EPC) {}

  /// The connection as the C API's transport.
  static llvm::Expected<Transport> transport(std::shared_ptr<Connection> C, jitmem_limits Limits) {
    Limits.struct_size = sizeof(Limits);
    jitmem_transport_callbacks Callbacks = {};
    Callbacks.struct_size = sizeof(Callbacks);
    Callbacks.limits = &Limits;
    Callbacks.executor = &C->EPC;
    Callbacks.ctx = new std::shared_ptr<Connection>(std::move(C));
    Callbacks.destroy = [](void *Ctx) { delete static_cast<std::shared_ptr<Connection> *>(Ctx); };
    Callbacks.call = [](void *Ctx, uint64_t Function, const void *Args, size_t Size,
                        jitmem_call Call) {
      (*static_cast<std::shared_ptr<Connection> *>(Ctx))
          ->call(llvm::orc::ExecutorAddr(Function),
                 {static_cast<const char *>(Args), Args ? Size : 0}, Call);
    };
    Callbacks.symbol = [](void *Ctx, const char *Name) {
      return (*static_cast<std::shared_ptr<Connection> *>(Ctx))->symbol(Name);
    };
    Callbacks.dispatch = [](void *Ctx, jitmem_task Task) {
      (*static_cast<std::shared_ptr<Connection> *>(Ctx))->run([Task] {
        jitmem_task_run(Task, nullptr);
      });
    };
    OwnedError E;
    jitmem_transport *T = nullptr;
    if (jitmem_transport_custom(&Callbacks, &T, E.out()) != JITMEM_OK)
      return E.take();
    return Transport(T);
  }

  /// The EPC is not touched any more; calls are answered with JITMEM_DISCONNECTED.
  void cut() {
    Closed = Cut = true;
    if (!inUse())
      std::unique_lock<std::shared_mutex> OthersAreDone(Gate);
  }

  /// Runs callbacks of the host as a task. They may block, which must not keep others waiting; and
  /// a thread that waits for them may then end the session, which waits for tasks only.
  template <typename FunctionT> void run(FunctionT Callbacks) {
    Certainly<FunctionT> F(std::move(Callbacks));
    use([&] {
      if (!Cut)
        EPC.getDispatcher().dispatch(
            llvm::orc::makeGenericNamedTask(std::move(F), "jitmem callbacks"));
    });
  }

private:
  /// Calls a function once, also if it is dropped, as a dispatcher that was shut down does.
  template <typename FunctionT> class Certainly {
  public:
    explicit Certainly(FunctionT F) : F(std::move(F)) {}
    Certainly(Certainly &&Other) noexcept
        : F(std::move(Other.F)), Due(std::exchange(Other.Due, false)) {}
    Certainly &operator=(Certainly &&) = delete;
    ~Certainly() { (*this)(); }

    void operator()() {
      if (std::exchange(Due, false))
        F();
    }

  private:
    FunctionT F;
    bool Due = true;
  };

  /// Answers one call. If it is dropped, the EPC has ended.
  class Answer {
  public:
    Answer(Connection &C, jitmem_call Call) : C(&C), Call(Call) {}
    Answer(Answer &&Other) noexcept : C(std::exchange(Other.C, nullptr)), Call(Other.Call) {}
    Answer &operator=(Answer &&) = delete;
    ~Answer() {
      if (C)
        disconnected();
    }

    /// WrapperFunctionResult, as LLVM 22 renamed it or not.
    template <typename ResultT> void operator()(const ResultT &Result) {
      const char *Message = Result.getOutOfBandError();
      if (!Message)
        give(JITMEM_OK, nullptr, Result.data(), Result.size());
      else if (saysDisconnected(Message))
        disconnected();
      else
        give(JITMEM_MAPPER_FAILED, Message, nullptr, 0);
    }

  private:
    void disconnected() {
      C->Closed = true;
      give(JITMEM_DISCONNECTED, ExecutorGone, nullptr, 0);
    }

    void give(jitmem_status Status, const char *Message, const void *Bytes, size_t Size) {
      C = nullptr; // the transport may go with its last answer
      jitmem_transport_answer(Call, Status, Message, Bytes, Size, nullptr);
    }

    Connection *C;
    jitmem_call Call;
  };

  /// A connection whose EPC a thread is using, and those that it is using further out.
  struct Use {
    const Connection *Of;
    const Use *Outer;
  };
  static const Use *&innermost() {
    thread_local const Use *Innermost = nullptr;
    return Innermost;
  }

  /// Whether this thread is using the EPC further out, and holds the gate.
  bool inUse() const {
    auto *U = innermost();
    while (U && U->Of != this)
      U = U->Outer;
    return U;
  }

  /// Uses the EPC, unless it is cut off before; cut() waits for this.
  template <typename FunctionT> void use(FunctionT F) {
    std::shared_lock<std::shared_mutex> Lock(Gate, std::defer_lock);
    if (!inUse())
      Lock.lock();
    Use This{this, innermost()};
    innermost() = &This;
    F();
    innermost() = This.Outer;
  }

  /// Answers are given where the EPC receives them: only the host's callbacks may block.
  void call(llvm::orc::ExecutorAddr Function, llvm::ArrayRef<char> Args, jitmem_call Call) {
    Answer A(*this, Call);
    use([&] {
      if (!Closed)
        EPC.callWrapperAsync(
            llvm::orc::ExecutorProcessControl::RunInPlace(), Function,
            [A = std::move(A)](auto Result) mutable { A(Result); }, Args);
    });
  }

  uint64_t symbol(const char *Name) {
    uint64_t Address = 0;
    use([&] {
      if (Closed)
        return;
      const auto &Published = EPC.getBootstrapSymbolsMap();
      if (auto Found = Published.find(Name); Found != Published.end())
        Address = Found->second.getValue();
    });
    return Address;
  }

  EPCRef EPC;
  std::atomic<bool> Closed{false}, Cut{false};
  std::shared_mutex Gate;
};

/// The file of the library that this process runs; empty if jitmem is linked statically here.
inline std::string ownLibrary() {
  // An address of its data: that of a function may be an entry of the executable's own.
  Dl_info Info;
  if (!dladdr(jitmem_version_string(), &Info) || !Info.dli_fname)
    return "";
  llvm::StringRef Path(Info.dli_fname);
  auto Name = Path.substr(Path.rfind('/') + 1);
  if (!Name.consume_front("libjitmem.so"))
    return "";
  // The executor may have another working directory.
  std::unique_ptr<char, void (*)(void *)> Absolute(realpath(Info.dli_fname, nullptr), free);
  return Absolute ? Absolute.get() : "";
}

/// The link to an executor.
struct ExecutorLink {
  std::shared_ptr<Connection> EPC;
  Transport Handle;

  static llvm::Expected<ExecutorLink> to(llvm::orc::ExecutorProcessControl &EPC,
                                         const jitmem_limits &Limits) {
    ExecutorLink Link;
    Link.EPC = std::make_shared<Connection>(EPC);
    auto NewHandle = Connection::transport(Link.EPC, Limits);
    if (!NewHandle)
      return NewHandle.takeError();
    Link.Handle = std::move(*NewHandle);
    return Link;
  }
};

/// jitmem's service in an executor.
struct Service {
  ExecutorLink Link;
  /// Address of jitmem_service_open.
  uint64_t Open = 0;
  /// 0: the one that every process with the library has.
  uint64_t Instance = 0;

  /// Finds the service that the executor publishes, or loads `Library` there.
  static llvm::Expected<Service> find(llvm::orc::ExecutorProcessControl &EPC, bool Load,
                                      std::string Library, const jitmem_limits &Limits) {
    Service S;
    if (auto Err = S.locate(EPC, Load, std::move(Library)))
      return Err;
    auto NewLink = ExecutorLink::to(EPC, Limits);
    if (!NewLink)
      return NewLink.takeError();
    S.Link = std::move(*NewLink);
    return S;
  }

private:
  llvm::Error locate(llvm::orc::ExecutorProcessControl &EPC, bool Load, std::string Library) {
    const auto &Published = EPC.getBootstrapSymbolsMap();
    if (auto Found = Published.find("jitmem_service_open"); Found != Published.end()) {
      Open = Found->second.getValue();
      if (auto Number = Published.find("jitmem_service_instance"); Number != Published.end())
        Instance = Number->second.getValue();
      return llvm::Error::success();
    }
    if (!Load)
      return notThere("and Options::LoadExecutorLibrary forbids to load it; link "
                      "jitmem::orc::ExecutorService into the executor");
    if (Library.empty())
      Library = ownLibrary();
    if (Library.empty())
      return notThere("and there is no libjitmem.so to load, since jitmem is linked statically "
                      "here; name one in Options::ExecutorLibrary");
    auto Found = findInLibrary(EPC, Library, "jitmem_service_open");
    if (!Found) {
      std::string Why = llvm::toString(Found.takeError());
      // No other way leads to that executor either.
      if (saysDisconnected(Why))
        return llvm::make_error<MemoryError>(
            JITMEM_DISCONNECTED, 0, "find jitmem's executor service: " + std::string(ExecutorGone));
      return notThere("and loading " + Library + " there failed: " + Why +
                      "; name the executor's own libjitmem.so in Options::ExecutorLibrary");
    }
    Open = Found->getValue();
    return llvm::Error::success();
  }

  static llvm::Error notThere(const std::string &Why) {
    return llvm::make_error<MemoryError>(
        JITMEM_UNSUPPORTED, 0,
        "find jitmem's executor service: the executor does not publish jitmem_service_open, " +
            Why);
  }
};

} // namespace jitmem::orc::detail

namespace jitmem::orc {

/// Sends the token that `jitmem-executor --token-file` wants over a connected socket, before
/// SimpleRemoteEPC has it; see jitmem_transport_send_token.
inline llvm::Error sendToken(int Socket, llvm::StringRef Token) {
  detail::OwnedError E;
  jitmem_transport_send_token(Socket, Token.data(), Token.size(), E.out());
  return E.take();
}

namespace detail {

/// Waits until something holds, or for any time at most: std::condition_variable adds that to the
/// time of now, which it may be too long for. False if it does not hold by then.
template <typename HoldsT>
bool waitFor(std::condition_variable &Changed, std::unique_lock<std::mutex> &Lock,
             std::chrono::milliseconds Limit, HoldsT Holds) {
  constexpr std::chrono::hours Longest(24 * 365 * 100);
  return Changed.wait_for(Lock, std::min<std::chrono::milliseconds>(Limit, Longest), Holds);
}

/// Shuts a socket down unless it is stopped within a limit.
class SocketWatch {
public:
  /// Fails where there is no descriptor or no thread to be had.
  static llvm::Error start(SocketWatch &W, std::chrono::milliseconds Limit, int Socket) {
    W.Limit = Limit;
    // One of its own: what connects may close its descriptor, whose number another file gets.
    W.Socket = ::fcntl(Socket, F_DUPFD_CLOEXEC, 0);
    if (W.Socket < 0)
      return failed("look after a socket", errno);
    // std::thread throws where there is none, and LLVM's hosts often have no exceptions.
    auto Run = [](void *Watch) -> void * {
      static_cast<SocketWatch *>(Watch)->watch();
      return nullptr;
    };
    if (int Why = ::pthread_create(&W.Thread, nullptr, Run, &W))
      return failed("start a thread that looks after a socket", Why);
    W.Started = true;
    return llvm::Error::success();
  }

  SocketWatch() = default;
  SocketWatch(const SocketWatch &) = delete;
  SocketWatch &operator=(const SocketWatch &) = delete;
  ~SocketWatch() {
    stop();
    if (Socket >= 0)
      ::close(Socket);
  }

  /// Whether the socket was shut down.
  bool stop() {
    if (std::exchange(Started, false)) {
      {
        std::lock_guard<std::mutex> Lock(M);
        Done = true;
      }
      Changed.notify_all();
      ::pthread_join(Thread, nullptr);
    }
    return Over;
  }

private:
  void watch() {
    std::unique_lock<std::mutex> Lock(M);
    if (waitFor(Changed, Lock, Limit, [&] { return Done; }))
      return;
    Over = true;
    ::shutdown(Socket, SHUT_RDWR);
  }

  static llvm::Error failed(const char *What, int Why) {
    return llvm::make_error<MemoryError>(JITMEM_SYSTEM, Why,
                                         std::string(What) + ": " + ::strerror(Why));
  }

  std::mutex M;
  std::condition_variable Changed;
  std::chrono::milliseconds Limit{};
  pthread_t Thread{};
  int Socket = -1;
  bool Started = false, Over = false, Done = false;
};

} // namespace detail

/// Has `Make` connect, for instance with SimpleRemoteEPC::Create, to the executor at the other end
/// of a connected socket, which waits until that has introduced itself. After the limit the socket
/// is shut down, by which the connection ends; then this fails with JITMEM_TIMED_OUT.
template <typename MakeT>
auto connectWithin(std::chrono::milliseconds Limit, int Socket, MakeT Make) -> decltype(Make()) {
  detail::SocketWatch Watch;
  if (auto Err = detail::SocketWatch::start(Watch, Limit, Socket))
    return std::move(Err);
  auto Made = Make();
  if (!Watch.stop())
    return Made;
  if (Made)
    llvm::consumeError((*Made)->disconnect());
  else
    llvm::consumeError(Made.takeError());
  return llvm::make_error<MemoryError>(
      JITMEM_TIMED_OUT, 0,
      "connect to an executor: it has not introduced itself within " +
          std::to_string(Limit.count()) + " ms; it is stopped, busy or no executor");
}

/// Calls wrapper functions in an executor without waiting, within limits, and gives them up.
///
/// Thread-safe. The EPC must be there for as long as this is used, not while it is destroyed.
class Calls {
public:
  /// Receives the result, or why there is none, as a task of the EPC's dispatcher.
  using AnsweredFunction = llvm::unique_function<void(llvm::Expected<std::vector<char>>)>;

  /// `Limits.code` is the limit of calls that have none of their own; struct_size is set here.
  static llvm::Expected<std::unique_ptr<Calls>> Create(llvm::orc::ExecutorProcessControl &EPC,
                                                       const jitmem_limits &Limits = {}) {
    auto Link = detail::ExecutorLink::to(EPC, Limits);
    if (!Link)
      return Link.takeError();
    return std::unique_ptr<Calls>(new Calls(std::move(*Link)));
  }

  Calls(const Calls &) = delete;
  Calls &operator=(const Calls &) = delete;
  ~Calls() { Link.EPC->cut(); }

  /// Returns a number for cancel(). `Limit` is in milliseconds; 0: Limits.code; UINT64_MAX: as long
  /// as it takes.
  uint64_t start(llvm::orc::ExecutorAddr Function, llvm::ArrayRef<char> Args,
                 AnsweredFunction OnAnswered, uint64_t Limit = 0) {
    uint64_t Call = 0;
    detail::submit(
        std::make_unique<Started>(Started{Link.EPC, std::move(OnAnswered)}),
        [&](void *Passed, jitmem_error **E) {
          return jitmem_transport_start(Link.Handle.get(), Function.getValue(), Args.data(),
                                        Args.size(), Limit, &Started::done, Passed, nullptr, &Call,
                                        E);
        },
        [](Started &S, llvm::Error E) { S.OnAnswered(std::move(E)); });
    return Call;
  }

  /// Has a call answered with JITMEM_CANCELLED. The executor is not told, and goes on with it; what
  /// it answers is dropped. Fails for a call that was answered before.
  static llvm::Error cancel(uint64_t Call) {
    detail::OwnedError E;
    jitmem_transport_cancel(Call, E.out());
    return E.take();
  }

private:
  struct Started {
    std::shared_ptr<detail::Connection> EPC;
    AnsweredFunction OnAnswered;

    static void done(void *Ctx, const void *Bytes, size_t Size, const jitmem_error *E) {
      std::unique_ptr<Started> S(static_cast<Started *>(Ctx));
      auto EPC = S->EPC;
      auto *First = static_cast<const char *>(Bytes);
      using ResultT = llvm::Expected<std::vector<char>>;
      ResultT Result = E ? ResultT(detail::toError(E)) : std::vector<char>(First, First + Size);
      EPC->run([S = std::move(S), Result = std::move(Result)]() mutable {
        S->OnAnswered(std::move(Result));
      });
    }
  };

  explicit Calls(detail::ExecutorLink Link) : Link(std::move(Link)) {}

  detail::ExecutorLink Link;
};

} // namespace jitmem::orc

#endif // JITMEM_ORC_TRANSPORT_HPP
