// Ctrl-C during a long C call: SIGINT cancels it, then Python's own handler runs.
#pragma once

#include "flashmoe.h"

// While it lives, and only on the main thread with Python's handler installed,
// SIGINT also cancels `session` and sets `cancel` to 1, if they are not null. Python's handler is put back at the end.
class Interruptible
{
  public:
    explicit Interruptible(fm_session *session, volatile int32_t *cancel = nullptr);
    ~Interruptible();
    Interruptible(const Interruptible &) = delete;
    Interruptible &operator=(const Interruptible &) = delete;

    // True if a SIGINT arrived.
    bool fired() const;

  private:
    bool installed_ = false;
};
