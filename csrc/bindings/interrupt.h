// Ctrl-C during a long C call: SIGINT cancels it, then Python's own handler runs.
#pragma once

#include <cstdint>

// While it lives, and only on the main thread with Python's handler installed,
// SIGINT also sets `cancel` to 1. Python's handler is put back at the end.
class Interruptible
{
  public:
    explicit Interruptible(volatile int32_t *cancel);
    ~Interruptible();
    Interruptible(const Interruptible &) = delete;
    Interruptible &operator=(const Interruptible &) = delete;

    // True if a SIGINT arrived.
    bool fired() const;

  private:
    bool installed_ = false;
};
