// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "client.hpp"
#include "system_error.hpp"

#include "llvm/Support/Endian.h"

#include <algorithm>
#include <cerrno>
#include <unistd.h>

using namespace llvm;
using namespace llvm::orc;

namespace bench {

/// Size with these bytes, opcode, sequence number and tag.
static constexpr size_t HeaderSize = 4 * sizeof(uint64_t);
Expected<std::unique_ptr<Client>> Client::Connect(const Executor &E) {
  std::unique_ptr<Client> C(new Client(E.in(), E.out()));
  Expected<StringRef> Setup = C->receive(SimpleRemoteEPCOpcode::Setup);
  if (!Setup)
    return Setup.takeError();
  shared::SPSInputBuffer Bytes(Setup->data(), Setup->size());
  if (!shared::SPSArgList<shared::SPSSimpleRemoteEPCExecutorInfo>::deserialize(Bytes, C->Info))
    return createStringError("the executor's first message can't be understood");
  return C;
}

Client::~Client() {
  close(Out);
  close(In);
}

Expected<ExecutorAddr> Client::symbol(StringRef Name) const {
  auto Found = Info.BootstrapSymbols.find(Name);
  if (Found == Info.BootstrapSymbols.end())
    return createStringError("the executor publishes no symbol %s", Name.str().c_str());
  return Found->second;
}

Expected<std::string> Client::call(ExecutorAddr Function, StringRef Args) {
  std::string Message;
  append(Message, Function, Args);
  if (Error Err = send(Message))
    return Err;
  Expected<StringRef> Answer = receive(SimpleRemoteEPCOpcode::Result);
  if (!Answer)
    return Answer.takeError();
  return Answer->str();
}

Error Client::callOften(ExecutorAddr Function, StringRef Args, unsigned Count, unsigned InFlight) {
  std::string Messages;
  unsigned Started = std::min(Count, InFlight);
  for (unsigned I = 0; I != Started; ++I)
    append(Messages, Function, Args);
  for (unsigned Answered = 0; Answered != Count;) {
    if (Error Err = send(Messages))
      return Err;
    Messages.clear();
    // One that waits, and all others that came with it.
    do {
      Expected<StringRef> Answer = receive(SimpleRemoteEPCOpcode::Result);
      if (!Answer)
        return Answer.takeError();
      ++Answered;
      if (Started != Count) {
        ++Started;
        append(Messages, Function, Args);
      }
    } while (hasMessage());
  }
  return Error::success();
}

void Client::append(std::string &Messages, ExecutorAddr Function, StringRef Args) {
  char Header[HeaderSize];
  support::endian::write64le(Header, HeaderSize + Args.size());
  support::endian::write64le(Header + 8, uint64_t(SimpleRemoteEPCOpcode::CallWrapper));
  support::endian::write64le(Header + 16, NextSequence++);
  support::endian::write64le(Header + 24, Function.getValue());
  Messages.append(Header, HeaderSize);
  Messages += Args;
}

Error Client::send(StringRef Messages) {
  while (!Messages.empty()) {
    ssize_t Written = write(Out, Messages.data(), Messages.size());
    if (Written >= 0)
      Messages = Messages.drop_front(size_t(Written));
    else if (errno != EINTR)
      return systemError(errno, "write to the executor");
  }
  return Error::success();
}

bool Client::hasMessage() const {
  size_t There = Filled - Taken;
  return There >= HeaderSize && There >= support::endian::read64le(&Buffer[Taken]);
}

Expected<StringRef> Client::receive(SimpleRemoteEPCOpcode Opcode) {
  while (!hasMessage()) {
    std::copy(&Buffer[Taken], &Buffer[Filled], Buffer.begin());
    Filled -= std::exchange(Taken, 0);
    if (Filled == Buffer.size())
      return createStringError("the executor sent a message of more than %zu bytes", Filled);
    ssize_t Count = read(In, &Buffer[Filled], Buffer.size() - Filled);
    if (Count > 0)
      Filled += size_t(Count);
    else if (Count == 0)
      return createStringError("the executor has disconnected");
    else if (errno != EINTR)
      return systemError(errno, "read from the executor");
  }
  const char *Message = &Buffer[Taken];
  uint64_t Size = support::endian::read64le(Message);
  uint64_t Found = support::endian::read64le(Message + 8);
  if (Size < HeaderSize || Found != uint64_t(Opcode))
    return createStringError("the executor sent a message of %llu bytes with opcode %llu where "
                             "opcode %u was expected",
                             static_cast<unsigned long long>(Size),
                             static_cast<unsigned long long>(Found), unsigned(Opcode));
  Taken += Size;
  return StringRef(Message + HeaderSize, Size - HeaderSize);
}

} // namespace bench
