// The Python module: converts, calls, raises. No logic, no caching, no defaults beyond the C ones.
#include "bindings/common.h"

NB_MODULE(_core, m)
{
    m.doc() = "The engine. Use flashmoe.Model, Generator and Sampler instead.";
    bind_model(m);
    bind_tools(m);
}
