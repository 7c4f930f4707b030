// The Python module: converts, calls, raises. No logic, no caching, no defaults beyond the C ones.
#include "bindings/common.h"

NB_MODULE(_core, m)
{
    m.doc() = "The engine. Use flashmoe.Model, Generator and Sampler instead.";
    nb::set_leak_warnings(false); // a program may end with a model open
    bind_model(m);
    bind_tools(m);
    nb::module_::import_("atexit").attr("register")(nb::cpp_function(&Unlocked::leave));
}
