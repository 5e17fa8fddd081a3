// How the verbs that speak to other processes are told to use TLS.
#ifndef WUKONG_LAUNCH_TLS_FLAG_H_
#define WUKONG_LAUNCH_TLS_FLAG_H_

#include <functional>
#include <string>

#include "CLI/CLI.hpp"

namespace wukong {

// Gives `verb` the flag --tls, and has it do `run` once that is in force. Without the flag WUKONG_TLS counts, which the
// processes that `run` starts find as well.
void SetConnectingAction(CLI::App* verb, std::function<int()>* action, std::function<int()> run);

// For a command line that is shown to a person, with a blank before it: empty, or " --tls DIRECTORY" where that is what
// this process was given.
std::string TlsFlagText();

}  // namespace wukong

#endif  // WUKONG_LAUNCH_TLS_FLAG_H_
