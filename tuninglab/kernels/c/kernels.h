/* The kernels of one number format: FORMAT names it, T holds it. */
#include "activations.h"
#include "attention.h"
#include "few_rows.h"
#include "norm.h"
#include "rows.h"
#include "decode.h"
