/* What the sample kernels are given. */
struct Rows {
    int rows, columns;
};

struct Attention {
    int positions, head_dim, stride;
    float scale;
};
