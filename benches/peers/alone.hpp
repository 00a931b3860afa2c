// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <functional>
#include <nlohmann/json.hpp>

namespace peers {

/// What Body answers in a process of its own; if it throws or crashes, a string that says so.
nlohmann::json alone(const std::function<nlohmann::json()> &Body);

} // namespace peers
