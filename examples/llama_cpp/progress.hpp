// One line that shows how far a long job is; on a terminal it is redrawn, elsewhere printed now and then.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>

class Progress {
  public:
    Progress(std::string what, double total) : what_(std::move(what)), total_(total), tty_(isatty(STDERR_FILENO)) {}
    ~Progress() { if (drawn_ && tty_) std::fputc('\n', stderr); }
    Progress(const Progress &) = delete;
    Progress &operator=(const Progress &) = delete;

    void show(double done, const std::string &note = "") {
        if (finished_) return;
        const auto now = Clock::now();
        const bool last = done >= total_;
        if (drawn_ && !last && now - drawn_at_ < (tty_ ? std::chrono::milliseconds(200) : std::chrono::seconds(15))) return;
        drawn_ = true;
        finished_ = last;
        drawn_at_ = now;
        const double part = std::clamp(total_ > 0 ? done / total_ : 1.0, 0.0, 1.0);
        const double seconds = std::chrono::duration<double>(now - start_).count();
        const int filled = int(part * 24);
        std::fprintf(stderr, "%s%-10s [%s%s] %3.0f%%  %s  %4.0f s", tty_ ? "\r\033[K" : "", what_.c_str(), std::string(size_t(filled), '=').c_str(),
                     std::string(size_t(24 - filled), ' ').c_str(), 100 * part, note.c_str(), seconds);
        if (!last && part > 0.02) std::fprintf(stderr, ", %.0f s left", seconds * (1 - part) / part);
        if (!tty_) std::fputc('\n', stderr);
    }

  private:
    using Clock = std::chrono::steady_clock;
    std::string what_;
    double total_;
    bool tty_, drawn_ = false, finished_ = false;
    Clock::time_point start_ = Clock::now(), drawn_at_{};
};
