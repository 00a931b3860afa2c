// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "alone.hpp"

#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <sys/wait.h>
#include <unistd.h>

namespace peers {

using nlohmann::json;

[[noreturn]] static void answer(FILE *Pipe, const std::function<json()> &Body) {
  json Answer;
  try {
    Answer = Body();
  } catch (const std::exception &E) {
    Answer = E.what();
  }
  std::string Text = Answer.dump();
  fwrite(Text.data(), 1, Text.size(), Pipe);
  fclose(Pipe);
  _exit(0);
}

json alone(const std::function<json()> &Body) {
  int Ends[2];
  if (pipe(Ends) != 0)
    throw std::runtime_error(std::string("pipe: ") + strerror(errno));
  fflush(nullptr);
  pid_t Child = fork();
  if (Child < 0)
    throw std::runtime_error(std::string("fork: ") + strerror(errno));
  if (Child == 0) {
    close(Ends[0]);
    answer(fdopen(Ends[1], "w"), Body);
  }
  close(Ends[1]);
  FILE *Pipe = fdopen(Ends[0], "r");
  json Answer = json::parse(Pipe, nullptr, /*allow_exceptions=*/false);
  fclose(Pipe);
  int Status;
  while (waitpid(Child, &Status, 0) < 0 && errno == EINTR)
    ;
  if (WIFSIGNALED(Status))
    return std::string("ended by signal ") + strsignal(WTERMSIG(Status));
  return Answer.is_discarded() ? json("no answer") : Answer;
}

} // namespace peers
