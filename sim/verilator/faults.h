// Verilator's run-time library would end the process; a fault of the design must reach the caller instead.
#pragma once

#include <stdexcept>
#include <string>

void vl_fatal(const char* file, int line, const char*, const char* message) {
    throw std::runtime_error(std::string(message) + " (" + file + ":" + std::to_string(line) + ")");
}
void vl_stop(const char* file, int line, const char* scope) { vl_fatal(file, line, scope, "the design stopped"); }
void vl_warn(const char* file, int line, const char* scope, const char* message) { vl_fatal(file, line, scope, message); }
void vl_finish(const char* file, int line, const char* scope) { vl_fatal(file, line, scope, "the design finished"); }
