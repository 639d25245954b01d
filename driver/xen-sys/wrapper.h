/* What of libxl is bound. LIBXL_API_VERSION picks macros only: functions and types are those of the
 * installed headers, and the binding fits the soname that these belong to. */
#define LIBXL_API_VERSION 0x041400
#include <libxl.h>
#include <libxl_event.h>
#include <libxl_utils.h>
#include <xentoollog.h>
